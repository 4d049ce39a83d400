"""The metrics of all replicas on one page of Prometheus' text form: each sample gets the label `replica`."""

import re
from collections.abc import Iterable

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?( .+)", re.S)
_ABOUT = re.compile(r"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*)")


def merge(pages: Iterable[tuple[str, str]]) -> str:
    """pages: the value of the label, and the page. The samples of a family stand together, as the format demands."""
    about, samples = dict[str, list[str]](), dict[str, list[str]]()
    for label, page in pages:
        family = ""
        for line in page.splitlines():
            if found := _ABOUT.match(line):
                family = found[2]
                lines = about.setdefault(family, [])
                if not any(one.startswith(found[0] + " ") for one in lines):
                    lines.append(line)
            elif sample := _SAMPLE.fullmatch(line):
                labels = f",{sample[2]}" if sample[2] else ""
                samples.setdefault(family, []).append(f'{sample[1]}{{replica="{label}"{labels}}}{sample[3]}')
    lines = [line for family, found in about.items() for line in (*found, *samples.get(family, ()))]
    return "".join(f"{line}\n" for line in (*samples.get("", ()), *lines))
