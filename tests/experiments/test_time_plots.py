import numpy as np
import pytest

from jaxop import domains, dynamics, experiments

TIMES = np.linspace(0.1, 1.2, 12)
LINE = domains.interval(16, rule="periodic")
PLACES = {
    "interval": LINE,
    "uneven interval": domains.from_samples(np.linspace(0, 1, 9, dtype=np.float32) ** 2),
    "square": domains.box((5, 6), rule="periodic"),
    "cloud": domains.monte_carlo(np.random.default_rng(0).uniform(size=(9, 2)).astype(np.float32)),
    "mesh": domains.triangle_mesh([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[0, 1, 2], [1, 3, 2]]),
    "sphere": domains.sphere(4),
}


def states_on(domain: domains.Domain, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0).normal(size=(2, len(TIMES), domain.size, channels))
    return draws[0], draws[0] + 0.1 * draws[1]


def panels_of(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def errors_of(name: str = "model", curve=(0.1, 0.2, 0.4), samples: int = 3) -> dynamics.RolloutErrors:
    times = np.broadcast_to(np.arange(1.0, 1 + len(curve)), (samples, len(curve)))
    values = np.array(curve) * np.linspace(0.9, 1.1, samples)[:, None]
    table = {
        name: {"nrmse": values, "correlation": 1 - values, "energy": values},
        "persistence": {"nrmse": 2 * values, "correlation": 1 - 2 * values},
        "truth": {"energy": np.ones_like(values)},
    }
    return dynamics.RolloutErrors(name, times, np.full(samples, len(curve)), table)


def test_errors_are_drawn_with_persistence():
    figure = experiments.plot_rollout_errors([errors_of("fno"), errors_of("$tno$", (0.2, 0.3, 0.5))], title="$KS$")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["fno", "$tno$", "persistence"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), (0.1, 0.2, 0.4))
    np.testing.assert_allclose(axes.lines[2].get_ydata(), (0.2, 0.4, 0.8))
    assert axes.get_yscale() == "log"
    assert len(axes.collections) == 2  # the middle half of the trajectories
    assert experiments.plot_rollout_errors(errors_of(), metric="correlation").axes[0].get_yscale() == "linear"


def test_the_true_energy_is_drawn_beside_that_of_the_model():
    (axes,) = experiments.plot_rollout_errors(errors_of(), metric="energy").axes
    assert [line.get_label() for line in axes.lines] == ["model", "truth"]


def test_the_mean_ends_where_a_rollout_blows_up_and_the_median_goes_on():
    errors = errors_of()
    errors.values["model"]["nrmse"][2, 1:] = np.inf
    (axes,) = experiments.plot_rollout_errors(errors).axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(np.isfinite(lines["model"]), [True, False, False])
    assert np.isfinite(lines["model, median"]).all()


def test_spectra_leave_out_the_mean_and_what_is_not_energy():
    kappa = 2.0 * np.arange(5)
    spectra = {"truth": np.array([9.0, 1, 1e-2, 1e-4, 0]), "model": np.array([9.0, 1, 1e-20, 1e-4, np.inf])}
    (axes,) = experiments.plot_spectra(spectra, kappa).axes
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), kappa[1:])
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [1, 1e-20, 1e-4, np.nan])
    assert axes.get_ylim()[0] >= 1e-14


def test_space_time_diagrams_have_the_nodes_and_times_as_axes():
    place = domains.from_samples(np.array([0.0, 0.1, 1.0], np.float32))
    truth, prediction = states_on(place, channels=2)
    figure = experiments.plot_space_time(truth, prediction, place, TIMES, channel=-1, title="$x$")
    panels = panels_of(figure)
    assert [panel.get_title() for panel in panels] == ["truth", "prediction", "|error|"]
    drawn = [panel.collections[0] for panel in panels]
    np.testing.assert_allclose(np.asarray(drawn[0].get_array()), truth[..., 1].T)
    np.testing.assert_allclose(np.asarray(drawn[2].get_array()), np.abs(prediction - truth)[..., 1].T)
    assert drawn[0].get_clim() == drawn[1].get_clim() == (truth[..., 1].min(), truth[..., 1].max())


def test_a_few_large_errors_do_not_flatten_the_others():
    truth = np.zeros((40, 16, 1))
    prediction = np.linspace(0, 1, truth.size).reshape(truth.shape)
    prediction[5, 3] = 100
    figure = experiments.plot_space_time(truth, prediction, LINE, np.arange(40.0))
    low, high = panels_of(figure)[2].collections[0].get_clim()
    assert low == 0
    assert 0.9 < high < 1.1


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", PLACES)
def test_snapshots_of_every_kind_of_domain(kind, tmp_path):
    truth, prediction = states_on(PLACES[kind])
    prediction[-1, 0] = np.nan
    figure = experiments.plot_snapshots(truth, prediction, PLACES[kind], TIMES, at=[0, 5, -1], title=kind)
    panels = panels_of(figure)
    assert len(panels) == 9
    assert [panel.get_title() for panel in panels[:3]] == ["t = 0.1", "t = 0.6", "t = 1.2"]
    if kind not in ("interval", "uneven interval"):
        scales = [panel.collections[0].get_clim() for panel in panels[:6]]
        assert len(set(scales)) == 1
        assert len(figure.axes) == 12
    experiments.save_figure(figure, tmp_path / "figure.png")


def test_at_most_five_snapshots_by_default():
    figure = experiments.plot_snapshots(*states_on(PLACES["square"]), PLACES["square"], TIMES)
    assert [panel.get_title() for panel in panels_of(figure)[:5]] == [f"t = {TIMES[i]:.4g}" for i in (0, 3, 6, 8, 11)]


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", ["interval", "square", "cloud"])
def test_animations_are_gifs_with_a_frame_per_time(kind, tmp_path):
    from PIL import Image

    path = tmp_path / "new" / "film.gif"
    truth, prediction = states_on(PLACES[kind])
    experiments.save_animation(path, truth, prediction, PLACES[kind], TIMES, every=5, title="$f$")
    with Image.open(path) as film:
        assert film.n_frames == 3


def test_mp4_without_ffmpeg_is_refused(tmp_path, monkeypatch):
    from matplotlib import animation

    monkeypatch.setattr(animation.FFMpegWriter, "isAvailable", lambda: False)
    truth, prediction = states_on(LINE)
    with pytest.raises(RuntimeError, match=r"film.mp4: MP4 needs the program ffmpeg.*write a .gif"):
        experiments.save_animation(tmp_path / "film.mp4", truth, prediction, LINE, TIMES)


def test_bad_input_is_named(unchecked, tmp_path):
    truth, prediction = states_on(LINE)
    with pytest.raises(ValueError, match=r"t = 12 times and n = 16 nodes, got \(12, 16, 1\) and \(11, 16, 1\)"):
        experiments.plot_space_time(truth, prediction[1:], LINE, TIMES)
    with pytest.raises(ValueError, match=r"domain must have one dimension.*got 2; plot_snapshots"):
        experiments.plot_space_time(*states_on(PLACES["square"]), PLACES["square"], TIMES)
    with pytest.raises(IndexError, match=r"at must lie between -12 and 11, got 12"):
        experiments.plot_snapshots(truth, prediction, LINE, TIMES, at=[12])
    with pytest.raises(IndexError, match=r"channel must lie between -1 and 0, got 1"):
        experiments.plot_snapshots(truth, prediction, LINE, TIMES, channel=1)
    with pytest.raises(ValueError, match=r"at must hold"):
        experiments.plot_snapshots(truth, prediction, LINE, TIMES, at=[])
    with pytest.raises(ValueError, match=r"path must end in .gif or .mp4, got .*film.avi"):
        experiments.save_animation(tmp_path / "film.avi", truth, prediction, LINE, TIMES)
    with pytest.raises(ValueError, match=r"errors must hold"):
        experiments.plot_rollout_errors([])
    with pytest.raises(ValueError, match=r"metric='rmse'"):
        experiments.plot_rollout_errors(errors_of(), metric="rmse")
    with pytest.raises(ValueError, match=r"spectra\['a'\] must have shape \(5,\).*got \(4,\)"):
        experiments.plot_spectra({"a": np.ones(4)}, np.arange(5.0))
