"""`evospec models`: which names a target and a drafter can be given by."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from evospec.models.catalogue import BUILT_IN
from evospec.models.drafter_store import shipped_drafters

Listing = dict[str, list[dict[str, str | int]]]


def list_models() -> Listing:
    """Built-in models and shipped drafters, ready for JSON; sizes in bytes."""
    return {
        "models": [
            {
                "name": model.name,
                "title": model.title,
                "licence": model.licence,
                "parameters": model.parameters,
                "download_bytes": model.size,
            }
            for model in BUILT_IN.values()
        ],
        "drafters": [
            {
                "name": name,
                "target": config.target_name,
                "target_fingerprint": config.target_fingerprint,
            }
            for name, config in shipped_drafters().items()
        ],
    }


def show_models(listing: Listing) -> None:
    console = Console()
    models = Table(title="Models with a built-in name")
    models.add_column("name", no_wrap=True)
    for heading in ("model", "parameters", "download", "licence"):
        models.add_column(heading)
    for model in listing["models"]:
        models.add_row(
            str(model["name"]),
            str(model["title"]),
            f"{int(model['parameters']) / 1e6:,.0f} M",
            f"{int(model['download_bytes']) / 1e6:,.0f} MB",
            str(model["licence"]),
        )
    console.print(models)
    console.print("A Hub id, a local folder or a GGUF file works as well.\n", highlight=False)
    drafters = Table("name", "for target", title="Drafters that come with EvoSpec")
    for drafter in listing["drafters"]:
        drafters.add_row(str(drafter["name"]), str(drafter["target"]))
    console.print(drafters)
