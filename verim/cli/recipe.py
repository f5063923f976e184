"""`verim recipe`: the experiments that come with Verim, by name."""

import json as json_module
from dataclasses import dataclass
from typing import Literal

import tyro

from verim.errors import InputError
from verim.recipes import recipes, run_recipe


@dataclass(frozen=True)
class RecipeCommand:
    """Lists the experiments that come with Verim, or runs one: verim recipe run NAME [its options].

    What follows NAME belongs to the recipe: `verim recipe run NAME --help` tells its options.
    """

    action: tyro.conf.Positional[Literal["list", "run"]] = "list"
    """list tells the names, run runs one."""
    name: tyro.conf.Positional[str | None] = None
    """Which recipe to run."""
    json: bool = False
    """Print the list as one JSON object."""

    def run(self) -> None:
        """Prints the list; to run a recipe is the work of `verim.recipes.run_recipe`."""
        found = recipes()
        if self.action == "run":
            if self.name is None:
                raise InputError(f"verim recipe run: which recipe is not said: expected one of {', '.join(found)}")
            run_recipe(self.name, ())
        elif self.json:
            print(json_module.dumps(found))
        else:
            width = max(map(len, found))
            print("\n".join(f"{name:{width}}  {summary}" for name, summary in found.items()))
