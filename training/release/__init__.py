"""Which version of the model answers: the gate, who decides, the servers, and the way back."""
