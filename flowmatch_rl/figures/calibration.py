"""Values of a critic against the returns that followed."""

from matplotlib.figure import Figure

from flowmatch_rl.evaluation import Calibration
from flowmatch_rl.figures.style import BLUE, GREY, new_figure, tidy


def draw_calibration(calibration: Calibration, title: str, valued: str = "discounted return") -> Figure:
    """Draw the value at the start of each episode over the return that followed, and the line where they agree.

    Args:
        calibration: Predicted and observed returns, at least one of them known.
        title: Title.
        valued: What the values are of, in some words.
    """
    known = calibration.known.cpu()
    predicted, observed = calibration.predicted.cpu()[known].numpy(), calibration.observed.cpu()[known].numpy()
    figure = new_figure(5.0, 4.8, title)
    axes = figure.subplots()
    low, high = min(predicted.min(), observed.min()), max(predicted.max(), observed.max())
    margin = 0.05 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, "--", color=GREY, linewidth=1.0, label="equal")
    axes.plot(observed, predicted, "o", color=BLUE, markersize=4, alpha=0.7, label=f"{len(observed)} episodes")
    axes.set(xlim=ends, ylim=ends)
    tidy(axes, f"{valued} of the episode", "value at its start")
    axes.legend(fontsize=8, frameon=False)
    return figure
