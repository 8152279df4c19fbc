"""Publish a finished run as a dataset on the Hub: the selected rows, every score, and a card.

Why: so that others can load the selection by name, check how it was made, and select again from the
published ratings without a GPU. Without --yes nothing is written; the plan is printed.

    python scripts/push_selected.py RUN user/selective-alpaca          # look at it first
    python scripts/push_selected.py RUN user/selective-alpaca --yes    # private, one commit

The login is that of 'hf auth login', or HF_TOKEN. The last line of output is JSON. Exit: 0 on
success, 1 if the push was refused, stopped or found wrong, 2 for invalid flags.
"""

import argparse
import json
import sys

from selectit_hf.errors import SelectItError, SettingError
from selectit_hf.hub.card import CardSettings
from selectit_hf.hub.publishing import push_run
from selectit_hf.hub.push_commit import Pushed
from selectit_hf.hub.push_plan import PushSettings
from selectit_hf.redaction import redacted
from selectit_hf.terminal import visible, write_out


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("run", metavar="RUN", help="run folder of 'selectit run', or its URL")
    flags.add_argument("repo", help="dataset repository, as in user/selective-alpaca")
    flags.add_argument("--yes", action="store_true", help="push; without it nothing is written")
    flags.add_argument("--public", action="store_true", help="to a public repository")
    flags.add_argument("--update", action="store_true", help="replace an earlier push")
    flags.add_argument("--overwrite", action="store_true", help="replace whatever is there")
    flags.add_argument("--create-pr", action="store_true", help="as one pull request")
    flags.add_argument(
        "--timeout", type=float, default=PushSettings.timeout, help="seconds for the whole push"
    )
    flags.add_argument("--license", help="instead of the source's, as in cc-by-nc-4.0")
    flags.add_argument("--language", action="append", default=[], help="code, as in en; repeatable")
    flags.add_argument("--pretty-name", help="title of the card")
    flags.add_argument("--examples", action="store_true", help="show the best and worst rows")
    return flags


def main() -> int:
    given = parser().parse_args()
    try:
        done = push_run(
            given.run,
            given.repo,
            yes=given.yes,
            card=CardSettings(
                given.license, tuple(given.language), given.pretty_name, given.examples
            ),
            tell=write_out,
            settings=PushSettings(
                given.public, given.update, given.overwrite, given.create_pr, given.timeout
            ),
        )
    except SelectItError as error:
        print(visible(redacted(f"Error: {error}")), file=sys.stderr)
        return 2 if isinstance(error, SettingError) else 1
    pushed = isinstance(done, Pushed)
    facts = {"repo": done.repo, "pushed": pushed and done.new}
    if isinstance(done, Pushed):
        facts |= {"commit": done.commit, "url": done.url, "pull_request": done.pull_request}
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
