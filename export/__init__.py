"""Bundle -> ONNX graphs -> parity gate -> the repository that Triton loads.

    graphs.py    PyTorch modules -> ONNX files        parity.py    do the graphs answer as the model does?
    publish.py   templates + graphs -> repository     pipeline.py  the three in order: `export(...)`

Start at `export.pipeline.export`. Nothing is published unless the graphs agree with the model.
"""
