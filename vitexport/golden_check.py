"""Checks what trtexec computed against PyTorch's outputs: the check.py of a bundle, for a device without vitexport.

Needs nothing but Python 3.6: JetPack 4 has that, and JetPack 5 has 3.8. Usage, as check.sh writes it:

    python3 check.py OUTPUT.json NAME=GOLDEN.f32=LIMIT_DB[=CLASSES] ...

OUTPUT.json is what trtexec --exportOutput writes; GOLDEN.f32 is little-endian float32. Of an output with CLASSES numbers an
image the largest number is a class (of one number its sign is), and the share of images with PyTorch's is printed. Exit
code 0: every output is at least LIMIT_DB decibels above its error; 1: one is not, or holds NaN or infinity; 2: a file is
not what it should be.
"""

import array
import json
import math
import re
import sys
from typing import Dict, List, Sequence, Tuple

# C++ writes these words into what is otherwise JSON.
WORDS = re.compile(r"(-?)\b(nan|inf)\b")
JSON_WORDS = {"nan": "NaN", "inf": "Infinity"}


def read_outputs(path: str) -> Dict[str, List[float]]:
    """Values by name of the output."""
    with open(path) as stream:
        text = stream.read()
    text = WORDS.sub(
        lambda word: ("-" if word.group(2) == "inf" and word.group(1) else "") + JSON_WORDS[word.group(2)], text
    )
    return {entry["name"]: [float(value) for value in entry["values"]] for entry in json.loads(text)}


def read_golden(path: str) -> Sequence[float]:
    """PyTorch's values."""
    values = array.array("f")
    with open(path, "rb") as stream:
        values.frombytes(stream.read())
    if sys.byteorder == "big":
        values.byteswap()
    return values


def decibels(golden: Sequence[float], values: Sequence[float]) -> float:
    """How far the signal is above the error."""
    signal = math.fsum(value * value for value in golden)
    error = math.fsum((value - wanted) * (value - wanted) for value, wanted in zip(values, golden))
    if not error:
        return math.inf
    return 10 * math.log10(signal / error) if signal else -math.inf


def agreement(golden: Sequence[float], values: Sequence[float], classes: int) -> float:
    """Percent of the images whose largest number is at the same place; of one number, those with the same sign."""
    if classes == 1:
        return 100.0 * sum((wanted > 0) == (value > 0) for wanted, value in zip(golden, values)) / len(golden)
    starts = range(0, len(golden), classes)
    same = sum(largest(golden, start, classes) == largest(values, start, classes) for start in starts)
    return 100.0 * same / len(starts)


def largest(values: Sequence[float], start: int, count: int) -> int:
    """Where the largest of `count` numbers from `start` on is."""
    return max(range(count), key=lambda index: values[start + index])


def check(name: str, golden: Sequence[float], values: Sequence[float], limit: float, classes: int) -> Tuple[str, bool]:
    """One line about one output, and whether it is right."""
    if len(values) != len(golden):
        raise ValueError("trtexec wrote %d numbers of output %s; expected %d" % (len(values), name, len(golden)))
    odd = sum(not math.isfinite(value) for value in values)
    if odd:
        return "%s: %d of %d numbers are NaN or infinite" % (name, odd, len(values)), False
    seen = decibels(golden, values)
    line = "%s: %.1f dB SQNR against PyTorch, at least %.1f expected" % (name, seen, limit)
    if classes:
        what = "top-1" if classes > 1 else "sign"
        line += "; same %s on %.2f %% of %d images" % (what, agreement(golden, values, classes), len(golden) // classes)
    return line, seen >= limit


def main(words: Sequence[str]) -> int:
    """Check every output; the exit code."""
    try:
        outputs = read_outputs(words[0])
        results = []
        for word in words[1:]:
            name, path, limit, classes = [*word.split("="), "0"][:4]
            results.append(check(name, read_golden(path), outputs.get(name, []), float(limit), int(classes)))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        sys.stderr.write("check.py: %s\n" % error)
        return 2
    for line, right in results:
        print("%s  %s" % ("passed" if right else "FAILED", line))
    return 0 if all(right for _, right in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
