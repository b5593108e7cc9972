"""Load generator: how fast a served model answers, how many answers a second it gives, and what it costs.

    from client.bench.load import ClosedLoop, OpenLoop, Phases, run_load

    sample = run_load(request, OpenLoop(rate=20.0), Phases(duration_s=10.0))
    print(sample.latency.p99_ms, sample.throughput)

`request` is any function of the request's number. `client.bench.requests` makes one for a served model,
`client.bench.measure` runs several in turn, `client.bench.report` writes what was found. Needs the `bench` extra.
"""
