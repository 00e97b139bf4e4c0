from services.compressor.pipeline.batches import make_batches


def test_every_sequence_is_in_one_batch_within_the_limit():
    sequences = [[n] * n for n in (5, 1, 9, 3, 3, 30, 2)]
    batches = make_batches(sequences, max_tokens=12)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(7))
    for batch in batches:
        assert batch.tokens.numel() <= 12 or len(batch.rows) == 1
        for place, row in enumerate(batch.rows):
            assert batch.tokens[place][batch.valid[place]].tolist() == sequences[row]


def test_no_sequences():
    assert make_batches([]) == []
