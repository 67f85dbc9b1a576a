"""The result of a run, for people and for programs."""

from collections import Counter


def show(peers, trials, cannot):
    """Prints a block for each peer, protocol and mode: a line for each suite, a column for each family and ESN."""
    block = lambda t: (t.case.peer, t.case.protocol, t.case.mode, t.case.extra)
    for peer, protocol, mode, extra in dict.fromkeys(map(block, trials)):
        ours = [t for t in trials if block(t) == (peer, protocol, mode, extra)]
        columns = sorted({(t.case.esn, t.case.family) for t in ours})
        cells = {(str(t.case.suite), t.case.esn, t.case.family): "FAIL" if t.faults else "ok" for t in ours}
        print(f"\n{peer} {peers[peer]}: {protocol}, {mode} mode{', ' + extra if extra else ''}\n")
        width = max(len(str(t.case.suite)) for t in ours) + 2
        print(" " * (width + 2) + "".join(f"{family + (' ESN' if esn else ''):<10}" for esn, family in columns))
        for suite in dict.fromkeys(str(t.case.suite) for t in ours):
            print(f"  {suite:<{width}}" + "".join(f"{cells.get((suite, *column), '.'):<10}" for column in columns).rstrip())
    print()
    for name, count in totals(trials, cannot).items():
        print(f"{name:<36}{count:>8}")
    for trial in trials:
        for fault in trial.faults:
            print(f"FAIL  {trial.case.peer} {trial.case}: {fault}")
    for (peer, reason), count in Counter((case.peer, reason) for case, reason in cannot).items():
        print(f"{peer} cannot do {count} cases: {reason}")


def totals(trials, cannot):
    """Counts by name."""
    packets = [len(packets) for trial in trials for packets in trial.packets.values()]
    return {
        "cases": len(trials),
        "passed": sum(not trial.faults for trial in trials),
        "failed": sum(bool(trial.faults) for trial in trials),
        "impossible with the peer": len(cannot),
        "IPsec packets on the wire": sum(packets),
        "cases whose ICVs tshark verified": sum(trial.judge == "tshark" for trial in trials),
        "cases whose ICVs OpenSSL verified": sum(trial.judge == "OpenSSL" for trial in trials),
    }


def as_json(peers, trials, cannot):
    """The same, for programs."""

    def row(case):
        suite = case.suite
        return {
            "peer": case.peer,
            "protocol": case.protocol,
            "mode": case.mode,
            "family": case.family,
            "esn": case.esn,
            "extra": case.extra or None,
            "encryption": suite.cipher and suite.cipher.name,
            "authentication": suite.hash and suite.hash.name,
            "icv_bytes": suite.icv,
        }

    return {
        "peers": peers,
        "totals": totals(trials, cannot),
        "cases": [{**row(t.case), "icv_judge": t.judge, "faults": t.faults} for t in trials],
        "cannot": [{**row(case), "reason": reason} for case, reason in cannot],
    }
