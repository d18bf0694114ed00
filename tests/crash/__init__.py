"""The crash loop: a desk that is killed thousands of times while it trades, compared from outside with its broker.

    python -m tests.crash --kills 300 --seed 7 [--ledger sqlite|postgres] [--mutant NAME]     (make crash)
    python -m tests.crash.mutants                                                             (make mutants)

One run is a row of epochs; each has a fresh ledger, a fresh misbehaving Alpaca (tests/alpaca) and some fifty kills:

    zygote.py       imports the desk once and forks it again and again: a whole desk within a fraction of a second
    child.py        what happens in a forked desk before it starts: kill points, a clock that steps, a mutant
    clients.py      processes that place, cancel and replace for several users, each request under an id of its own and
                    repeated until it is definitely answered, and that write down what they were told
    executioner.py  kill -9 at random and at named points, stops, SIGTERM, second servers, full and locked disks …
    epoch.py        chaos, then all faults off, then up to 30 s to come to rest, then the comparison
    history.py      what was gathered: the broker's book, the ledger's rows, what clients were told
    fold.py         the ledger's rows added up, by other code than the desk's
    invariants.py   the 17 promises, one function each
    mutants.py      bugs put in on purpose, each of which the loop must catch
"""
