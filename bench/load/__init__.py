"""Load generator: latency, throughput and resource use of a served model.

    from bench.load.generator import ClosedLoop, OpenLoop, Phases, run_load

    sample = run_load(request, OpenLoop(rate=20.0), Phases(duration_s=10.0))
    print(sample.latency.p99_ms, sample.throughput)

`request` is any function of the request's number. `bench.load.requests` makes one for a served model,
`bench.report.measure` runs several loads in turn, `bench.report.write` writes the results. Needs the `bench` extra.
"""
