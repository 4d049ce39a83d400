"""`stretto pull`: download a model once and check it."""

from dataclasses import dataclass

from stretto.cli._terminal import print_json
from stretto.core.env import read_env
from stretto.core.option import argument, option

EXAMPLES = ("stretto pull smollm2",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto pull`."""

    model: str = argument("an alias (see `stretto list model`), or a hub id with the [hub] extra")
    force: bool = option("download an alias again, even if it is there", default=False)
    json: bool = option("print one JSON object", default=False)


def run(options: Options) -> int:
    """Print where the model is; nothing is downloaded twice."""
    from stretto.hub.models import aliases, pull, resolve

    env = read_env()
    again = options.force and options.model in aliases()
    path = (pull if again else resolve)(options.model, env=env)
    if options.json:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        print_json({"model": options.model, "path": str(path), "bytes": sum(file.stat().st_size for file in files)})
    else:
        print(path)
    return 0
