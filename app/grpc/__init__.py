"""The Open Inference Protocol over gRPC: each call is asked of the same application that answers HTTP."""
