"""The views: colours, and what a model predicted, held against its own mixtures computed one sequence at a time."""

import base64
import io
import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fusedmdn import FusedLSTMMDN, Scale, Strokes, render
from fusedmdn.cli import app
from fusedmdn.dataset import StrokeSet
from fusedmdn.render import circles, heat, predictions, views

SVG = "{http://www.w3.org/2000/svg}"
HOUSE = Strokes.from_polylines([[(0, 40), (20, 20), (40, 40)], [(5, 40), (5, 70), (35, 70), (35, 40)], [(20, 55)]])
ZIGZAG = Strokes.from_polylines([[(3, 3), (30, 9), (8, 20), (33, 31), (2, 40)]])
DOT, NOTHING = Strokes.from_polylines([[(5, 5)]]), Strokes.from_polylines([])
KINDS = [("bernoulli", "linear"), ("categorical", "linear"), ("categorical", "sigmoid")]


def small_model(pen="categorical", means="linear", spread=0.0):
    """Random weights with wide differences; `spread` is added to the logarithm of all deviations."""
    torch.manual_seed(3)
    model = FusedLSTMMDN(3 if pen == "bernoulli" else 5, 12, 2, 4, pen=pen, means=means, dropout=0.5)
    model.scale = Scale((1.0, -2.0), (11.0, 9.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 5
        model.head.bias[-12:-4] += spread
    return model


def mixtures(model, strokes):
    """What the module's own forward says of each point: weights, means, sigmas in raw units, P(the stroke ends)."""
    rows = torch.from_numpy(strokes.rows(model.pen, model.scale))
    inputs = torch.cat([torch.zeros_like(rows[:1]), rows])[: len(strokes)]
    model.eval()
    with torch.no_grad():
        mixture, _ = model(inputs)
    q, pen = mixture.parameters, mixture.pen_probs.numpy()
    shift, std = model.scale.arrays()
    mean = torch.stack([q.mu_x, q.mu_y], -1).numpy() * std + shift
    sigma = np.exp(torch.stack([q.log_sigma_x, q.log_sigma_y], -1).numpy()) * std
    eos = pen[:, 0] if model.pen == "bernoulli" else pen[:, 1] + pen[:, 2]
    return mixture, q.log_weight.exp().numpy(), mean, sigma, eos


def elements(text, name):
    return ET.fromstring(text).findall(f".//{SVG}{name}")


def colours(text):
    return [p.get("stroke") for p in elements(text, "path")]


@pytest.mark.parametrize(("pen", "means"), KINDS)
def test_predictions_of_a_batch_are_those_of_each(pen, means, monkeypatch):
    monkeypatch.setattr(predictions, "BATCH_ROWS", 12)  # several batches
    model = small_model(pen, means).train()
    sequences = [HOUSE, NOTHING, ZIGZAG, DOT]
    got = predictions.predict(model, sequences)
    assert model.training  # as it was, and without dropout meanwhile
    for strokes, one in zip(sequences, got, strict=True):
        assert len(one.weight) == len(one.eos) == len(strokes)
        if len(strokes):
            mixture, weight, mean, sigma, eos = mixtures(model, strokes)
            for name, expected in (("weight", weight), ("mean", mean), ("sigma", sigma), ("eos", eos)):
                np.testing.assert_allclose(getattr(one, name), expected, rtol=1e-4, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(one.r, mixture.parameters.r, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_a_long_sequence_goes_in_pieces(pen, monkeypatch):
    model = small_model(pen)
    whole = predictions.predict(model, [HOUSE, DOT])
    assert len(HOUSE) == 8
    fed, raw_output = [], model.raw_output

    def watched(x, state, lengths):
        fed.append(x.shape[0] * x.shape[1])
        return raw_output(x, state, lengths)

    monkeypatch.setattr(model, "raw_output", watched)
    monkeypatch.setattr(predictions, "BATCH_ROWS", 3)
    pieces = predictions.predict(model, [HOUSE, DOT])
    assert fed == [1, 3, 3, 2]
    for one, other in zip(pieces, whole, strict=True):
        for name, value in vars(one).items():
            np.testing.assert_allclose(value, getattr(other, name), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("pen", "means"), KINDS)
def test_eos_is_the_darker_the_likelier(pen, means):
    model = small_model(pen, means)
    *_, eos = mixtures(model, HOUSE)
    inked = [1, 2, 4, 5, 6, 7]  # points that a vector leads to, and the lone one
    got = [int(colour[1:3], 16) for colour in colours(render.svg([HOUSE], view="eos", model=model))]
    np.testing.assert_allclose(got, (1 - eos[inked]) * views.LIGHTEST, atol=0.51)
    assert max(got) - min(got) > 10
    assert all(c[1:3] == c[3:5] == c[5:] for c in colours(render.svg([HOUSE], view="eos", model=model)))


@pytest.mark.parametrize(("pen", "means"), KINDS)
def test_circles_are_the_components(pen, means):
    model = small_model(pen, means)
    _, weight, mean, sigma, _ = mixtures(model, HOUSE)
    (figure,) = (page := render.lay_out([HOUSE])).figures
    position = np.concatenate([np.zeros((1, 2)), np.cumsum(HOUSE.points[:, :2], axis=0)])
    expected = []
    for t, j in itertools.product(range(len(HOUSE)), range(4)):
        x, y = (position[t] + mean[t, j]) * figure.unit + figure.origin
        radius = np.sqrt(sigma[t, j, 0] * sigma[t, j, 1]) * figure.unit
        opacity = min(weight[t, j] * (0.03 * page.height / radius) ** 2, 0.6)
        seen = -radius < x < page.width + radius and -radius < y < page.height + radius
        if weight[t, j] > 0.01 and opacity >= circles.LEAST_OPACITY and seen:
            expected.append((x, y, radius, opacity))
    got = elements(render.svg([HOUSE], view="mixture", model=model), "circle")
    numbers = [[float(c.get(name)) for name in ("cx", "cy", "r", "opacity")] for c in got]
    assert len(numbers) > 5
    np.testing.assert_allclose(numbers, expected, rtol=5e-3, atol=0.01)


def test_circles_are_painted_as_they_are_written():
    model = small_model()
    page = render.lay_out([HOUSE])
    under = circles.Circles(page, predictions.predict(model, [HOUSE]))
    under.circles = [np.array([[0, 60.5, 50.5, 20, 0.5], [3, 90.5, 50.5, 20, 0.4]])]
    early, late = under.pixels([2, None])
    red = np.array([0xE8, 0x11, 0x2D])
    for pixels, second in ((early, 0.0), (late, 0.4)):
        for (x, y), paper in {(50, 50): 0.5, (100, 50): 1 - second, (75, 50): 0.5 * (1 - second), (20, 90): 1}.items():
            np.testing.assert_allclose(pixels[y, x], red + (255 - red) * paper, atol=0.51)


@pytest.mark.parametrize("step", [None, 0, 4])
@pytest.mark.parametrize(("pen", "means"), KINDS)
def test_heat_is_the_density_of_the_mixture(pen, means, step, monkeypatch):
    """Held against `StrokeMixture.density` on the whole page, where deviations are many pixels wide."""
    monkeypatch.setattr(heat, "CHUNK", 50_000)
    model = small_model(pen, means, spread=1.0)
    page = render.lay_out([HOUSE])
    (figure,) = page.figures
    (prediction,) = predictions.predict(model, [HOUSE])
    assert prediction.sigma.min() * figure.unit > 4 * heat.GRAIN
    got = heat.density(figure, prediction, step)

    mixture, *_ = mixtures(model, HOUSE)
    shift, std = model.scale.arrays()
    position = np.concatenate([np.zeros((1, 2)), np.cumsum(HOUSE.points[:, :2], axis=0)])
    expected = np.zeros((-(-page.height // heat.GRAIN), -(-page.width // heat.GRAIN)))
    x, y = np.meshgrid(*((np.arange(n) + 0.5) * heat.GRAIN for n in expected.shape[::-1]))
    raw = (np.stack([x, y], -1) - figure.origin) / figure.unit
    for t in range(len(HOUSE)) if step is None else [step]:
        grid = torch.from_numpy((raw - position[t] - shift) / std).float()
        expected += mixture.density(grid)[..., t].numpy() * (heat.GRAIN / figure.unit) ** 2 / std.prod()
    assert expected.max() > 0
    np.testing.assert_allclose(got, expected, rtol=0.02, atol=expected.max() * 0.02)


def test_heat_of_narrow_components_is_not_lost_between_pixels():
    """Each holds its whole weight, however small it is; windows are as wide as they have to be."""
    (figure,) = render.lay_out([HOUSE]).figures
    n = len(HOUSE)
    offsets = HOUSE.points[:, None, :2]  # where it goes next, all of it on the page
    for sigma in (1e-30, 0.01, 0.3, 3.0):
        parts = np.ones((n, 1)), offsets, np.full((n, 1, 2), sigma), np.full((n, 1), 15.0), np.zeros(n)
        prediction = predictions.Prediction(*(v.astype(np.float32) for v in parts))
        assert heat.density(figure, prediction).sum() == pytest.approx(n, rel=0.02)


def test_svg_s_heat_is_an_embedded_png():
    model = small_model(spread=-1.0)
    (element,) = elements(render.svg([HOUSE, DOT], view="density", model=model), "image")
    kind, data = element.get("href").split(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        pixels = np.asarray(image.convert("RGB"))
        assert image.mode == "P"
    page = render.lay_out([HOUSE, DOT])
    under = heat.Heat(page, predictions.predict(model, [HOUSE, DOT]))
    assert (image.width * heat.GRAIN, image.height * heat.GRAIN) == (page.width, page.height)
    assert (int(element.get("width")), int(element.get("height"))) == (page.width, page.height)
    levels = under.levels(None)
    assert levels.max() == 255
    assert np.array_equal(pixels, heat.heat_map()[levels])


def test_heat_map_is_ordered():
    luminance = heat.heat_map() @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -0.8).all()  # 8 bits
    assert luminance[-1] - luminance[0] > 180


@pytest.mark.parametrize(("view", "count"), [("vectors", 6), ("strokes", 3)])
def test_random_colours_are_legible_and_a_function_of_the_seed(view, count):
    def draw(seed, sequences=(HOUSE,)):
        return colours(render.svg(sequences, view=view, seed=seed))

    got = draw(0)
    assert got == draw(0) != draw(1)
    assert len(set(got)) == len(got) == count
    twice = draw(0, [HOUSE, HOUSE])
    assert twice[:count] == got != twice[count:]  # by its place alone
    many = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for s in range(40) for c in draw(s)]) / 255
    linear = np.where(many <= 0.04045, many / 12.92, ((many + 0.055) / 1.055) ** 2.4)
    contrast = 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    assert contrast.min() > 2.5
    assert np.ptp(many, axis=1).min() > 0.3  # and colours


@pytest.mark.parametrize("view", render.VIEWS)
def test_frames_end_with_the_picture(view, tmp_path):
    model = small_model(spread=-1.5)
    images = render.frames([HOUSE, ZIGZAG], view=view, model=model)
    whole = np.asarray(render.image([HOUSE, ZIGZAG], view=view, model=model), int)
    assert len(images) == render.GIF_FRAMES
    assert np.abs(np.asarray(images[-1], int) - whole).max() <= 2
    assert np.abs(np.asarray(images[20], int) - whole).max() > 50
    render.draw([HOUSE], tmp_path / "x.gif", view=view, model=model)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames > 5


def test_the_density_moves_ahead_of_the_pen():
    model = small_model(spread=-2.0)
    (figure,) = render.lay_out([HOUSE]).figures
    (prediction,) = predictions.predict(model, [HOUSE])
    images = render.frames([HOUSE], view="density", model=model)
    for time in (2, 5):  # points that are written, of 8 in 60 frames
        still = render.image([HOUSE], view="density", model=model, step=time)
        moving = images[60 * time // len(HOUSE) - 1]
        assert np.abs(np.asarray(moving, int) - np.asarray(still, int)).max() <= 2
        level = heat.density(figure, prediction, time)
        y, x = np.unravel_index(level.argmax(), level.shape)
        bright = np.asarray(still)[y * heat.GRAIN, x * heat.GRAIN]
        assert bright.sum() > 500
    assert len(elements(render.svg([HOUSE], view="density", model=model, step=5), "path")) == 2


@pytest.mark.parametrize("view", render.VIEWS)
@pytest.mark.parametrize("pen", ["bernoulli", "categorical"])
def test_odd_sequences_can_be_drawn(view, pen, tmp_path):
    far = Strokes.from_polylines([[(0, 0), (3e30, 1e29), (-2e30, 1e30)]])
    for k, sequences in enumerate([[NOTHING], [DOT], [far], [NOTHING, DOT, far, HOUSE]]):
        for ending in (".svg", ".png"):
            render.draw(sequences, tmp_path / f"{k}{ending}", view=view, model=small_model(pen))
        text = (tmp_path / f"{k}.svg").read_text()
        assert not re.search(r"nan|inf\b", re.sub(r'href="[^"]*"', "", text), re.IGNORECASE)
        ET.fromstring(text)
    assert render.frames([NOTHING], view=view, model=small_model(pen))


def test_what_does_not_go_together_is_refused(tmp_path):
    for view in ("eos", "mixture", "density"):
        with pytest.raises(ValueError, match=f"view '{view}' draws what a model predicts, and no model was given"):
            render.svg([HOUSE], view=view)
    with pytest.raises(ValueError, match="view must be one of plain, vectors, .*; got 'heat'"):
        render.image([HOUSE], view="heat")
    with pytest.raises(ValueError, match="step is a number of points, for view 'density' alone; got 3 for 'mixture'"):
        render.svg([HOUSE], view="mixture", model=small_model(), step=3)
    with pytest.raises(ValueError, match="step 8: no sequence has a point after so many, the longest has 8"):
        render.svg([HOUSE, DOT], view="density", model=small_model(), step=8)
    with pytest.raises(ValueError, match=r"x.gif: a .gif shows every step; step 2 is of a still picture"):
        render.draw([HOUSE], tmp_path / "x.gif", view="density", model=small_model(), step=2)
    with pytest.raises(ValueError, match="the model reads 7 features, but predicts rows of 3"):
        render.svg([HOUSE], view="eos", model=FusedLSTMMDN(7, 4, 1, 2))
    small = small_model()
    small.scale = Scale((0.0, 0.0), (1e-3, 1.0))
    with pytest.raises(ValueError, match="sequence 1: its offsets are too large for the model's units"):
        render.svg([HOUSE, Strokes.from_polylines([[(3e37, 0)]])], view="eos", model=small)
    with torch.no_grad():
        small.head.bias[5] = torch.nan
    with pytest.raises(ValueError, match="sequence 0: what the model predicts is not finite"):
        render.draw([HOUSE], tmp_path / "x.svg", view="density", model=small)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    StrokeSet.of([HOUSE, ZIGZAG, DOT]).save("a.npz")
    StrokeSet.of([ZIGZAG, NOTHING]).save("b.npz")
    small_model().save_pretrained("model")
    return tmp_path


def command(*words):
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("view", render.VIEWS)
def test_draw_draws_every_view(view, files):
    words = ("draw", "a.npz", "b.npz", "--view", view, "--model", "model", "--seed", 2, "--columns", 5)
    result = command(*words, "--out", "x.svg", "--out", "x.png")
    assert result.exit_code == 0, result.output
    assert result.output == "wrote x.svg: 5 sequences\nwrote x.png: 5 sequences\n"
    expected = [HOUSE, ZIGZAG, DOT, ZIGZAG, NOTHING]
    model = FusedLSTMMDN.from_pretrained("model")
    assert (files / "x.svg").read_text() == render.svg(expected, 5, view, model, seed=2)


def test_predictions_are_made_once_for_all_files(files, monkeypatch):
    made = []

    def watched(model, sequences):
        made.append(1)
        return predictions.predict(model, sequences)

    monkeypatch.setattr(views, "predict", watched)
    outs = ("--out", "x.svg", "--out", "x.png", "--out", "x.gif", "--view", "mixture")
    assert command("draw", "a.npz", "--model", "model", *outs).exit_code == 0
    assert made == [1]
    result = command("sample", "model", "--max-steps", 5, *outs, "--out", "x.npz")
    assert result.output.splitlines()[:4] == ["wrote x.npz", "wrote x.svg", "wrote x.png", "wrote x.gif"]
    assert made == [1, 1]


def test_draw_counts_through_all_files(files):
    result = command("draw", "a.npz", "b.npz", "--first", 2, "-n", 2, "--out", "x.svg")
    assert result.output == "wrote x.svg: 2 sequences\n"
    assert (files / "x.svg").read_text() == render.svg([DOT, ZIGZAG])
    command("draw", "a.npz", "missing.npz", "--first", 1, "-n", 1, "--out", "x.svg")  # never reached
    assert (files / "x.svg").read_text() == render.svg([ZIGZAG])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("missing.npz", "--view", "eos"), "--view eos draws what a network predicts: give one with --model"),
        (("missing.npz", "--view", "ink"), "view must be one of plain, vectors, strokes, eos, mixture, density"),
        (("missing.npz", "--step", 3), "step is a number of points, for view 'density' alone"),
        (("missing.npz", "--out", "x.bmp"), "x.bmp: the output ends in .svg, .png or .gif"),
        (("missing.npz", "--step", 3, "--out", "x.gif"), "x.gif: a .gif shows every step"),
        (("missing.npz",), "missing.npz: cannot be read"),
        (("a.npz", "b.npz", "--first", 5), "a.npz, b.npz: nothing to draw from sequence 5 on; there are 5"),
        (("a.npz", "--view", "eos", "--model", "nowhere"), "nowhere"),
        (("a.npz", "--view", "density", "--model", "nowhere", "--step", 8), "step 8: no sequence has a point after"),
        (("missing.npz", "--device", "abacus"), "device 'abacus' cannot be used"),
    ],
)
def test_draw_says_what_is_wrong(words, message, files):
    result = command("draw", *words, "--out", "y.svg")
    assert result.exit_code == 2
    assert message in result.output
    assert not (files / "y.svg").exists()


def test_sample_draws_a_view(files):
    words = ("sample", "model", "-n", 2, "--seed", 5, "--max-steps", 12, "--out", "x.svg", "--out", "x.npz")
    assert command(*words, "--view", "mixture").exit_code == 0
    model = FusedLSTMMDN.from_pretrained("model")
    drawn = list(model.generate(2, 12, seed=5))
    assert (files / "x.svg").read_text() == render.svg(drawn, view="mixture", model=model)
    result = command("sample", "model", "--out", "z.svg", "--view", "none")
    assert result.exit_code == 2
    assert "view must be one of" in result.output


@pytest.mark.parametrize("seed", [5, -3, 2**63 + 1])
@pytest.mark.parametrize("view", ["vectors", "strokes"])
def test_sample_s_colours_are_of_its_seed(view, seed, files):
    words = ("sample", "model", "-n", 2, "--seed", seed, "--max-steps", 12, "--view", view, "--out", "x.svg")
    assert command(*words).exit_code == 0
    drawn = list(FusedLSTMMDN.from_pretrained("model").generate(2, 12, seed=seed))
    assert (files / "x.svg").read_text() == render.svg(drawn, view=view, seed=seed % 2**64)
    assert (files / "x.svg").read_text() != render.svg(drawn, view=view)
