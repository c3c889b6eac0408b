"""One protocol per framework: device, precision, loop, memory."""
