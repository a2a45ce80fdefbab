"""Section of training: charts of losses, accuracies, logit scale, learning rate and speed."""

from openslip.report.charts import chart, moving_average
from openslip.report.run_files import AbsentError, Metrics

WORDS = {"acc": "accuracy", "lr": "learning rate"}
SMOOTHED = ("loss", "acc", "samples_per_second")  # ends of the names of metrics that vary from step to step


def curves(metrics: Metrics) -> str:
    """Draw a chart for each group of training metrics; losses of a user's validation are drawn with the others."""
    columns = metrics.columns
    terms = [name for name in columns if name.startswith(("train/", "val/"))]
    losses, accuracies = ([name for name in terms if name.endswith(end)] for end in ("loss", "acc"))
    drawn = []
    for title, names, unit in (
        ("Loss", losses, ""),
        ("Accuracy within the batch", accuracies, "%"),
        ("Logit scale", ["train/logit_scale"], ""),
        ("Learning rate", ["train/lr"], ""),
        ("Samples per second", ["speed/samples_per_second"], ""),
    ):
        series = {curve_name(name): columns[name] for name in names if name in columns}
        if series:
            drawn.append(chart(title, series, metrics.x_name, unit, smooth=names[0].endswith(SMOOTHED)))
    if not drawn:
        raise AbsentError("there is no metrics.csv, or no training step in it")
    is_smoothed = any(moving_average(columns[name].y) is not None for name in (*losses, *accuracies))
    note = "<p>Pale: as logged. Bold: its moving average.</p>" if is_smoothed else ""
    return f"{note}{grid(drawn)}"


def curve_name(column: str) -> str:
    """Return the name of a training metric as it is shown."""
    group, _, name = column.partition("/")
    words = ["validation"] * (group == "val") + [WORDS.get(word, word) for word in name.split("_")]
    return " ".join(words)


def grid(charts: list[str]) -> str:
    """Arrange charts in rows of three; the last four are two pairs where one chart would be left over."""
    return f'<div class="charts{" pairs" if len(charts) % 3 == 1 else ""}">{"".join(charts)}</div>'
