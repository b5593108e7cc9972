"""Bundle -> ONNX graphs -> two gates -> the repository that Triton loads.

    graphs.py      PyTorch modules -> ONNX files             parity.py      do they answer as the model does?
    optimize.py    ONNX Runtime's fused operators, counted   operators.py   what TensorRT cannot take
    profiles.toml  precisions and how far each may move      convert.py     graphs of another precision
    precision.py   do those still answer well enough?        fuse.py        encoders and fusion in one graph
    targets.toml   how models run, by machine and purpose    configs.py     each config.pbtxt
    publish.py     graphs + configs -> a new version         versions.py    which version answers; rollback
    tensorrt.py    plans for NVIDIA GPUs                     pipeline.py    all in order: `export(...)`

Start at `export.pipeline.export`. Nothing is published unless the graphs agree with the model.
"""
