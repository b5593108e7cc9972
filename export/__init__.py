"""Export a bundle: write its ONNX graphs, run the gates, and publish a repository for Triton.

    pipeline.py    all steps in order: `export(...)`
    graphs/        export from PyTorch, fused operators, other precisions, fused graphs
    gates/         comparisons with the model: parity in float32, precision, and the running server
    settle.py      the products that stay in float32           sensitivity.py   the ranking of products for settle.py
    speed.py       the comparison of two profiles' speed
    profiles.toml  precisions and their limits                 profiles.py      reads profiles.toml
    targets.toml   settings by hardware and aim                targets.py       reads targets.toml
    configs.py     each config.pbtxt                           publish.py       a new version from graphs and configs
    versions.py    switch, rollback and removal of versions    hub.py           a folder for a model hub
    tensorrt/      plans for NVIDIA GPUs

Nothing is published unless the graphs agree with the model.
"""

__all__ = ["gates", "graphs", "hub", "pipeline", "profiles", "tensorrt", "versions"]
