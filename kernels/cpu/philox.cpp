#include "philox.h"

#include "face.h"


// One block of any key and counter, as Random123's known answers give them: key[2], counter[4] -> out[4].
FUSEDMDN_API void fusedmdn_philox_block(const std::uint32_t* key, const std::uint32_t* counter, std::uint32_t* out) {
    const auto words = fusedmdn::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
    for (int k = 0; k < 4; ++k) out[k] = words.w[k];
}

// Fills `out` with the random stream of sequences first_index .. first_index + count - 1.
//
//   first_step  int64[count] or null (all zero): each sequence's first step, 0 <= first_step, first_step + steps <= 2^32
//   normals     0: out is float[count][steps][4], the four uniforms of every block
//               1: out is float[count][steps][2], the two normals made of its words 2 and 3
//
// The caller owns every buffer. Returns 0, or 1 if a count, step or flag is out of range (nothing is written then).
FUSEDMDN_API int fusedmdn_philox_fill(std::uint64_t seed, std::uint64_t first_index, std::int64_t count,
                                      const std::int64_t* first_step, std::int64_t steps, int normals, float* out) {
    constexpr std::int64_t limit = std::int64_t{1} << 32;
    if (count < 0 || steps < 0 || steps > limit || (normals != 0 && normals != 1)) return 1;
    for (std::int64_t i = 0; first_step && i < count; ++i)
        if (first_step[i] < 0 || first_step[i] > limit - steps) return 1;

    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t start = first_step ? first_step[i] : 0;
        for (std::int64_t t = 0; t < steps; ++t) {
            const auto words = fusedmdn::block(seed, first_index + static_cast<std::uint64_t>(i),
                                               static_cast<std::uint32_t>(start + t));
            float u[4];
            for (int k = 0; k < 4; ++k) u[k] = fusedmdn::uniform(words.w[k]);
            if (normals) {
                fusedmdn::box_muller(u[2], u[3], out[0], out[1]);
                out += 2;
            } else {
                for (int k = 0; k < 4; ++k) *out++ = u[k];
            }
        }
    }
    return 0;
}
