"""The one-way UDP path under a link: sockets with kernel batching, pacing, and the buffers that go round."""
