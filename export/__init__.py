"""Bundle -> ONNX graphs -> two gates -> the repository that Triton loads.

    graphs/        PyTorch modules -> ONNX files, fused operators, other precisions, one graph in place of three
    gates/         do they answer as the model does? well enough in int8? does the running server, too?
    profiles.toml  precisions and how far each may move     profiles.py    reads them
    targets.toml   how models run, by machine and purpose   targets.py     reads them
    configs.py     each config.pbtxt                        publish.py     graphs + configs -> a new version
    versions.py    which version answers; rollback          pipeline.py    all in order: `export(...)`
    tensorrt/      plans for NVIDIA GPUs                    hub.py         a folder for a model hub, and back

Start at `export.pipeline.export`. Nothing is published unless the graphs agree with the model.
"""

__all__ = ["gates", "graphs", "hub", "pipeline", "profiles", "tensorrt", "versions"]
