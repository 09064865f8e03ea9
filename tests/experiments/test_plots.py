import builtins

import numpy as np
import pytest

from jaxop import data, domains, experiments
from jaxop.data import Samples

FLAT = domains.triangle_mesh(np.array([[0, 0], [1, 0], [0, 1], [1, 1.0]], np.float32), np.array([[0, 1, 2], [1, 3, 2]]))
CASES = {
    "interval": domains.interval(9),
    "uneven interval": domains.from_samples(np.linspace(0, 1, 9, dtype=np.float32) ** 2),
    "square": domains.box((4, 6), rule="midpoint"),
    "cube": domains.box((3, 4, 5)),
    "cloud": domains.monte_carlo(np.random.default_rng(0).uniform(size=(7, 2)).astype(np.float32)),
    "mesh": FLAT,
}


def samples_on(domain, *, count: int = 2, channels: int = 1) -> Samples:
    values = np.random.default_rng(0).normal(size=(count, domain.size, channels)).astype(np.float32)
    return Samples(values[..., :1], values, domain)


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", CASES)
def test_every_kind_of_domain_is_drawn(kind, tmp_path):
    samples = samples_on(CASES[kind])
    figure = experiments.plot_predictions(samples, 0.9 * samples.targets, title=kind)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert [panel.get_title() for panel in panels[:4]] == ["input", "truth", "prediction", "|error|"]
    assert len(panels) == 8
    experiments.save_figure(figure, tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_truth_and_prediction_share_their_colours():
    samples = samples_on(CASES["square"], count=1)
    figure = experiments.plot_predictions(samples, 3 * samples.targets)
    truth, prediction = (figure.axes[i].collections[0].get_clim() for i in (1, 2))
    assert truth == prediction == (samples.targets.min(), samples.targets.max())


def test_a_field_is_drawn_where_its_nodes_are():
    """The first axis of a grid is x_1 and runs to the right."""
    domain = domains.box((4, 6), lower=(0, 1), upper=(1, 4), rule="midpoint")
    values = np.asarray(domain.points)[None, :, :1]
    figure = experiments.plot_predictions(Samples(values, values, domain), values)
    mesh = figure.axes[1].collections[0]
    corners = np.asarray(mesh.get_coordinates())
    np.testing.assert_allclose((corners[0, 0], corners[-1, -1]), ((0, 1), (1, 4)), atol=1e-6)
    np.testing.assert_allclose(np.asarray(mesh.get_array())[0], (0.125, 0.375, 0.625, 0.875), rtol=1e-6)


def test_functions_on_a_sphere_are_maps_of_longitude_and_latitude():
    latitudes, longitudes = np.array([60.0, 0.0, -60.0]), np.array([0.0, 90.0, 180.0, 270.0])
    earth = domains.latitude_longitude(latitudes, longitudes, radius=6371.0)
    u = np.ones((1, earth.size, 1), np.float32)
    figure = experiments.plot_predictions(Samples(u, u, earth), u)
    shown = np.asarray(figure.axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(np.abs(shown[:4]), [[0, 60], [90, 60], [180, 60], [90, 60]], atol=1e-3)
    np.testing.assert_allclose(shown[:, 1], np.repeat(latitudes, 4), atol=1e-3)


def test_channels_and_samples_get_rows_of_their_own():
    samples = samples_on(CASES["interval"], count=2, channels=3)
    figure = experiments.plot_predictions(samples, samples.targets, labels=["median", "worst"])
    labels = [axes.get_ylabel() for axes in figure.axes[::4]]
    assert labels == [f"{name}\nchannel {c}" for name in ("median", "worst") for c in range(3)]
    np.testing.assert_array_equal(figure.axes[3].lines[0].get_ydata(), np.zeros(9))


def test_samples_on_domains_of_their_own():
    samples = data.controlled_ode(2, seed=0, nodes=11)
    figure = experiments.plot_predictions(samples, samples.targets)
    drawn = [figure.axes[4 * i].lines[0].get_xdata() for i in range(2)]
    np.testing.assert_array_equal(drawn, np.asarray(samples.domain.axes[0].nodes))


def test_predictions_of_another_shape_are_refused(unchecked):
    samples = samples_on(CASES["interval"])
    with pytest.raises(ValueError, match=r"shape \(2, 9, 1\), got \(2, 9, 2\)"):
        experiments.plot_predictions(samples, np.zeros((2, 9, 2)))
    with pytest.raises(ValueError, match="each of the 2 samples, got 1"):
        experiments.plot_predictions(samples, samples.targets, labels=["one"])


def panels_of(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_error_bars_are_a_band_of_one_variable_and_a_panel_of_several(unchecked):
    curves = samples_on(CASES["uneven interval"], count=1)
    widths = np.arange(9, dtype=np.float32).reshape(1, 9, 1)
    figure = experiments.plot_predictions(curves, 2 * curves.targets, half_widths=widths)
    (band,) = figure.axes[2].collections
    corners = band.get_paths()[0].vertices
    upper = np.stack([curves.domain.points[:, 0], (2 * curves.targets + widths)[0, :, 0]], axis=-1)
    assert np.abs(corners[:, None] - upper).max(axis=-1).min(axis=0).max() < 1e-6
    fields = samples_on(CASES["square"], count=1)
    figure = experiments.plot_predictions(fields, fields.targets, half_widths=np.full((1, 24, 1), 3.0))
    panels = panels_of(figure)
    assert [panel.get_title() for panel in panels] == ["input", "truth", "prediction", "|error|", "half-width"]
    assert panels[4].collections[0].get_clim() == (0, 3)
    with pytest.raises(ValueError, match=r"half_widths must have the targets' shape \(1, 24, 1\), got \(1, 9, 1\)"):
        experiments.plot_predictions(fields, fields.targets, half_widths=widths)


def test_a_few_large_errors_do_not_flatten_the_others():
    domain = domains.box((40, 40), rule="midpoint")
    truth = np.zeros((1, domain.size, 1), np.float32)
    prediction = np.linspace(0, 1, domain.size, dtype=np.float32).reshape(truth.shape)
    prediction[0, 7] = 100
    figure = experiments.plot_predictions(Samples(truth, truth, domain), prediction)
    low, high = panels_of(figure)[3].collections[0].get_clim()
    assert low == 0
    assert 0.9 < high < 1.1
    assert figure.axes[-1].get_ylim() == (low, high)


def test_the_nodes_of_a_mesh_are_shown_on_the_input():
    samples = samples_on(FLAT, count=1)
    shown = panels_of(experiments.plot_predictions(samples, samples.targets))
    assert [len(panel.collections) for panel in shown] == [2, 1, 1, 1]
    np.testing.assert_array_equal(shown[0].collections[1].get_offsets(), FLAT.points)


def columns_on(*kinds: str, scale: float = 0.9):
    sets = {kind: samples_on(CASES[kind], count=1) for kind in kinds}
    return {kind: (samples, np.float32(scale) * samples.targets) for kind, samples in sets.items()}


def test_one_function_on_several_domains_has_one_scale_per_row(tmp_path):
    columns = columns_on("square", "cloud", "mesh")
    figure = experiments.plot_on_domains(columns, labels=("a", "u", "v", "|v − u|"), title="$all$")
    shown = panels_of(figure)
    assert [panel.get_title() for panel in shown[:3]] == ["square", "cloud", "mesh"]
    assert [panel.get_ylabel() for panel in shown[::3]] == ["a", "u", "v", "|v − u|"]
    limits = [{panel.collections[0].get_clim() for panel in shown[i : i + 3]} for i in range(0, 12, 3)]
    assert [len(row) for row in limits] == [1, 1, 1, 1]
    assert limits[1] == limits[2]
    targets = np.concatenate([samples.targets.ravel() for samples, _ in columns.values()])
    assert limits[1] == {(targets.min(), targets.max())}
    assert {panel.get_xlim() for panel in shown} == {(0.0, 1.0)}
    experiments.save_figure(figure, tmp_path / "figure.png")


def test_several_domains_need_one_sample_of_two_variables_each(unchecked):
    with pytest.raises(ValueError, match="at least one sample, got none"):
        experiments.plot_on_domains({})
    with pytest.raises(ValueError, match="interval: give one sample of two variables"):
        experiments.plot_on_domains(columns_on("interval"))
    samples = samples_on(CASES["square"])
    with pytest.raises(ValueError, match="pair: give one sample of two variables"):
        experiments.plot_on_domains({"pair": (samples, samples.targets)})
    one = samples.take([0])
    with pytest.raises(ValueError, match=r"one: .* shape \(1, 24, 1\), got \(1, 24, 2\)"):
        experiments.plot_on_domains({"one": (one, np.zeros((1, 24, 2)))})


def test_the_running_mean_of_a_constant_loss_is_that_constant():
    rows = [{"step": t, "loss": 0.5} for t in range(1, 201)]
    noisy, mean = experiments.plot_learning_curves(rows).axes[0].lines
    assert len(noisy.get_xdata()) == 200
    np.testing.assert_allclose(mean.get_ydata(), 0.5)
    assert mean.get_xdata()[-1] == 200


def test_losses_that_were_not_finite_are_left_out():
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 2, "valid/l2": None}]
    assert len(experiments.plot_learning_curves(rows).axes[0].lines[0].get_xdata()) == 1


def test_no_metrics_give_an_empty_plot(tmp_path):
    experiments.save_figure(experiments.plot_learning_curves([]), tmp_path / "empty.png")


@pytest.mark.parametrize("name", ["we$ird^$_.npz", "_$x$.npz"])
def test_names_of_files_are_no_formulas(name, tmp_path):
    samples = samples_on(CASES["interval"], count=1)
    predictions = experiments.plot_predictions(samples, samples.targets, labels=[name], title=name)
    curves = experiments.plot_learning_curves([{"step": t, f"{name}/l2": 1 / t} for t in (1, 2)], title=name)
    errors = experiments.plot_errors([CASES["interval"]], {"relative L2": [0.1]}, title=name)
    for i, figure in enumerate((predictions, curves, errors)):
        experiments.save_figure(figure, tmp_path / f"{i}.png")
    (entry,) = curves.axes[0].get_legend().get_texts()
    titles = curves.axes[0].title, errors.axes[0].title
    for text in (entry, predictions.axes[0].yaxis.label, *predictions.texts, *titles):
        assert not text.get_parse_math()
    assert [title.get_text() for title in titles] == [name, name]
    assert entry.get_text() == f"{name}/l2"


def test_even_and_uneven_grids_form_their_own_curves():
    grids = [CASES["square"], CASES["interval"], CASES["uneven interval"]]
    figure = experiments.plot_errors(grids, {"relative L2": [0.1, 0.2, 0.3], "relative H1": [None, 0.4, None]})
    curves = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert curves == {"relative L2": [0.1, 0.2], "relative L2, uneven nodes": [0.3], "relative H1": [0.4]}


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'jaxop\[scripts\]'"):
        experiments.plot_learning_curves([])
