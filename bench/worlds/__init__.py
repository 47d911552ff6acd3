"""The parts of the generated shop: contexts, catalogue, people, visits. `tailorbird.bench.world` puts them together."""
