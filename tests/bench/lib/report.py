"""Tables: medians side by side, ratios to the host, geometric means per group. A ratio is always "times slower"."""
import math
import statistics

from lib.micro import GROUPS


def number(value):
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 1000:
        return "%.0f" % value
    return "%.*f" % (max(0, 3 - int(math.floor(math.log10(abs(value)))) - 1), value)


def ratio_text(value):
    return "-" if value is None else "%.2f" % value


def middle(values, best=None):
    if not values:
        return None
    return best(values) if best else statistics.median(values)


def slower(value, reference, unit):
    """How many times slower value is than reference."""
    if not value or not reference:
        return None
    return reference / value if unit.endswith("/s") else value / reference


def geomean(values):
    values = [v for v in values if v]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


# A host that is itself a virtual machine traps this one: its ratio says nothing about the guests.
NOT_IN_MEANS = {"cpuid"}
LINE = "%-20s %9s %9s %9s %-8s %8s %8s %8s"


def head(title):
    print()
    print(LINE % (title, "native", "fvm", "qemu", "", "fvm/nat", "qemu/nat", "qemu/fvm"))


def micro_row(results, row, best):
    unit = results.catalogue.units.get(row, "")
    pick = (max if unit.endswith("/s") else min) if best else None
    native, fvm, qemu = (middle(results.values.get(m, {}).get(row), pick) for m in ("native", "fvm", "qemu"))
    ratios = slower(fvm, native, unit), slower(qemu, native, unit), slower(qemu, fvm, unit)
    return (native, fvm, qemu), unit, ratios


def micro(results, best):
    """Print all groups; return {group: (fvm/native, qemu/native, qemu/fvm)}."""
    means, every = {}, []
    for group, title in GROUPS.items():
        rows = [r for r in results.catalogue.rows if results.catalogue.group[r] == group]
        rows = [r for r in rows if any(r in v for v in results.values.values())]
        if not rows:
            continue
        head(title)
        ratios = []
        for row in rows:
            values, unit, r = micro_row(results, row, best)
            print(LINE % (row, *map(number, values), unit, *map(ratio_text, r)))
            if row not in NOT_IN_MEANS:
                ratios.append(r)
        means[group] = tuple(geomean(r[i] for r in ratios) for i in range(3))
        every += ratios
        print(LINE % ("geometric mean", "", "", "", "", *map(ratio_text, means[group])))
    if len(means) > 1:
        head("geometric means")
        for group, mean in means.items():
            print(LINE % (GROUPS[group], "", "", "", "", *map(ratio_text, mean)))
        means["all"] = tuple(geomean(r[i] for r in every) for i in range(3))
        print(LINE % ("all rows", "", "", "", "", *map(ratio_text, means["all"])))
    failed(results.failures)
    return means


def failed(texts):
    for text in texts:
        print("failed: " + text)


def plain(title, rows, units, mean=False):
    """Rows {name: {machine: [values]}}; units by row, "" for the others."""
    head(title)
    every = []
    for row, machines in rows.items():
        unit = units.get(row, units[""])
        native, fvm, qemu = (middle(machines.get(m)) for m in ("native", "fvm", "qemu"))
        ratios = slower(fvm, native, unit), slower(qemu, native, unit), slower(qemu, fvm, unit)
        print(LINE % (row, *map(number, (native, fvm, qemu)), unit, *map(ratio_text, ratios)))
        every.append(ratios)
    if mean and every:
        print(LINE % ("geometric mean", "", "", "", "", *(ratio_text(geomean(r[i] for r in every)) for i in range(3))))
