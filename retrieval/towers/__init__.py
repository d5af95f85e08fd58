"""The product's two towers: model, loss, training and export to ONNX."""
