"""The sites of one study: its own, and those that its entries name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from flows.sites.executors import PACKS
from flows.sites.site_schemas import BatchSite, PythonSite, SiteConfig, load_site
from lambda_hat.errors import ConfigError


def site_word(name: str) -> str:
    """What a site is called: its name in conf/site, or that of its file without the ending."""
    path = Path(name)
    return path.stem if path.suffix in (".yaml", ".yml", ".py") else name


def packs_label(name: str) -> str:
    """The label of the executor for the packs of a site that entries name. An empty name: the site of the study."""
    return f"{PACKS}_{re.sub(r'[^A-Za-z0-9_]', '_', site_word(name))}" if name else PACKS


def load_sites(own_name: str, own: SiteConfig, named: Mapping[str, str]) -> dict[str, SiteConfig]:
    """The site of a study under the empty name, and those that its entries name under theirs.

    named: names of the others, each with the entry that names it first.
    Raises ConfigError where one does not exist, or does not go together with the others.
    """
    sites = {"": own}
    words = {packs_label(own_name): own_name}
    for name, entry in named.items():
        where = f"{entry}: site"
        site = sites[name] = load_site(name, asked=where)
        if site.cores_per_rank != own.cores_per_rank:
            raise ConfigError(
                f"{where}: {name} has cores_per_rank = {site.cores_per_rank}, but {own_name}, the site of the study, "
                f"has {own.cores_per_rank}; the last bits of results depend on it, so give both the same"
            )
        if isinstance(site, PythonSite) or isinstance(own, PythonSite):
            raise ConfigError(f"{where}: {name} beside {own_name}: a site in Python goes alone; write it as YAML")
        other = words.setdefault(packs_label(name), name)
        if other != name:
            raise ConfigError(f"{where}: {name} and {other} would go by one name; rename one of the files")
        for other, earlier in list(sites.items())[:-1]:
            _check_pair(where, (name, site), (other or own_name, earlier))
    return sites


def _check_pair(where: str, one: tuple[str, SiteConfig], other: tuple[str, SiteConfig]) -> None:
    batch = [isinstance(site, BatchSite) for _, site in (one, other)]
    if not any(batch):
        raise ConfigError(f"{where}: {one[0]} and {other[0]} both compute on this machine, whose cores are for one")
    if all(batch) and one[1].kind != other[1].kind:
        raise ConfigError(
            f"{where}: {one[0]} takes the scheduler {one[1].kind}, and {other[0]} {other[1].kind}; a study asks one"
        )
