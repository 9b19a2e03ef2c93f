"""Decide what a model is for, from what the user says, what the checkpoint's file says, and what the model ends in."""

from __future__ import annotations

from vitexport.artifacts import Task
from vitexport.errors import UsageError
from vitexport.source.request import Head, ModelRequest


def decide_task(requested: Task | None, recorded: Task | None, *, classes: int | None, name: str) -> Task:
    """The task of a model.

    Args:
        requested: What the user asked for, or None.
        recorded: What the checkpoint's file says (its ``problem_type``), or None.
        classes: Width of the classifier that the model ends in; None or 0 where it ends in something else.
        name: Of the model, for messages.

    Raises:
        UsageError: The two contradict each other or the model; or a classifier of width 1 could be either of two tasks.
    """
    if not classes:
        if requested not in (None, "embedding"):
            raise UsageError(
                f"`task={requested}` reads a classifier, and {name} ends in none as it is asked for; leave out `head` and "
                "`features`, or give `num_classes` and a checkpoint that has a classifier."
            )
        return "embedding"
    if requested is not None and recorded is not None and requested != recorded:
        raise UsageError(
            f"`task={requested}` contradicts the checkpoint, which was trained for {recorded} (its problem_type); leave out "
            f"`task`, or give `task={recorded}`."
        )
    task = requested or recorded
    if task is None and classes == 1:
        raise UsageError(
            f"{name} has one output, and nothing says what it is: give `task=classification` (one logit: two classes by its "
            "sign, sigmoid) or `task=regression` (a number in a unit of its own)."
        )
    return task or "classification"


def check_request(request: ModelRequest) -> None:
    """Refuse an embedding that is asked to end in the classifier.

    Raises:
        UsageError: `request` contradicts itself.
    """
    if request.task == "embedding" and (request.head == "classifier" or request.softmax):
        option = "`softmax`" if request.softmax else "`head=classifier`"
        raise UsageError(
            f"`task=embedding` gives what the classifier reads, so {option} contradicts it; leave out one of the two."
        )


def head_of(request: ModelRequest, classes: int | None) -> Head | None:
    """What stands at the model's end: as asked for, else the classifier of a model that has one.

    An embedding that is asked for by its task is the one that the classifier reads.
    """
    if request.head is not None or request.features:
        return request.head
    if not classes:
        return "none"
    return "features" if request.task == "embedding" else "classifier"


def check_softmax(task: Task, classes: int) -> None:
    """Refuse probabilities that would be wrong.

    Raises:
        UsageError: The task's numbers are not shares of one whole.
    """
    if task == "classification" and classes > 1:
        return
    reasons = {
        "classification": "of one logit is always 1; its probability is its sigmoid, which predict and model.app.onnx give",
        "multi-label": "makes the labels share one whole, and several can be true; predict and model.app.onnx give sigmoids",
        "regression": "makes shares of numbers that have a unit of their own",
    }
    raise UsageError(f"`softmax` {reasons[task]}. Leave out `softmax`.")
