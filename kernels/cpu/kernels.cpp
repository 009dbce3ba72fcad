// Compiled once for every instruction set, with its flags and -DFUSEDMDN_ISA=name.
//
// Everything but the table has internal linkage: were an inline function shared between these objects, the linker might
// keep the copy that an older processor cannot run. Hence also no containers or algorithms of the standard library here.
#include "kernels.h"

#include <new>

#include "lstm.h"
#include "mdn.h"
#include "peak.h"
#include "sampler.h"

namespace fusedmdn {
namespace {

template <class E>
void release_network(Network<E>* network) {
    release(network->weights);
    release(network->constants);
    delete network;
}

template <class E>
void* pack_network(const fusedmdn_network& n) {
    auto* network = new (std::nothrow) Network<E>(n);
    if (!network) return nullptr;
    if (network->weights && network->constants) {
        network->pack(n);
        return network;
    }
    release_network(network);
    return nullptr;
}

int run_lstm(const fusedmdn_lstm& a, Layout at) { return a.bf16 ? lstm<bf16>(a, at) : lstm<float>(a, at); }

int run_lstm_backward(const fusedmdn_lstm_backward& a, Layout at) {
    return a.bf16 ? lstm_backward<bf16>(a, at) : lstm_backward<float>(a, at);
}

int run_mdn_nll(const fusedmdn_mdn& a) { return a.bf16 ? mdn<bf16, false>(a) : mdn<float, false>(a); }

int run_mdn_nll_backward(const fusedmdn_mdn& a) { return a.bf16 ? mdn<bf16, true>(a) : mdn<float, true>(a); }

void* run_pack(const fusedmdn_network& n) { return n.bf16 ? pack_network<bf16>(n) : pack_network<float>(n); }

void run_release(void* network, bool is_bf16) {
    if (is_bf16) release_network(static_cast<Network<bf16>*>(network));
    else release_network(static_cast<Network<float>*>(network));
}

int run_generate(const void* network, bool is_bf16, const fusedmdn_generate& call) {
    if (is_bf16) return generate(*static_cast<const Network<bf16>*>(network), call);
    return generate(*static_cast<const Network<float>*>(network), call);
}

#define FUSEDMDN_TEXT(name) #name
#define FUSEDMDN_NAME(name) FUSEDMDN_TEXT(name)
#define FUSEDMDN_JOIN(a, b) a##b
#define FUSEDMDN_TABLE(name) FUSEDMDN_JOIN(kernels_, name)

}  // namespace

extern const Kernels FUSEDMDN_TABLE(FUSEDMDN_ISA);
const Kernels FUSEDMDN_TABLE(FUSEDMDN_ISA) = {
    FUSEDMDN_NAME(FUSEDMDN_ISA), run_lstm, run_lstm_backward, run_mdn_nll, run_mdn_nll_backward,
    run_pack, run_release, run_generate, peak, read_all,
};

}  // namespace fusedmdn
