"""`python -m tests.crash --kills 300 --seed 7`: 0 when every invariant held and every fault was shown."""

import argparse
import random
import sys

from tests.crash.loop import Plan, report, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", default="", help="one is drawn, and printed, where none is given")
    parser.add_argument("--ledger", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--epoch-kills", type=int, default=60, help="kills on one ledger, before it is compared")
    parser.add_argument("--jobs", type=int, default=1, help="epochs at a time")
    parser.add_argument("--mutant", default="", help="with this bug put in")
    parser.add_argument("--epoch", type=int, default=None, help="only this epoch of the run")
    parser.add_argument("--pause", type=float, default=0.05, help="mean seconds between two acts of a client")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the run's directory in any case")
    options = parser.parse_args()
    plan = Plan(
        kills=options.kills,
        seed=options.seed or str(random.SystemRandom().randrange(10**6)),
        ledger=options.ledger,
        epoch_kills=options.epoch_kills,
        jobs=options.jobs,
        mutant=options.mutant,
        pause_s=options.pause,
        nice=options.nice,
        only_epoch=options.epoch,
        keep=options.keep,
    )
    print(f"seed {plan.seed}", flush=True)
    result = run(plan)
    print(report(result), flush=True)
    never = result.never() if options.epoch is None else []
    if never:
        print(f"never shown: {', '.join(never)}", flush=True)
    return 1 if result.violations or result.failed or never else 0


if __name__ == "__main__":
    sys.exit(main())
