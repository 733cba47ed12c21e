"""Deploy: a network becomes an ONNX file that is checked against torch."""
