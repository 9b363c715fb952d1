from scvae_ext.train.history import History


def test_an_empty_history_starts_at_zero():
    history = History()
    assert history.last("step") == 0
    assert len(history.to_frame()) == 0


def test_rows_become_a_tidy_table():
    history = History()
    history.append({"step": 10, "elbo_train": -3.5})
    history.append({"step": 20, "elbo_train": -2.5})
    frame = history.to_frame()
    assert frame["step"].tolist() == [10, 20]
    assert frame["step"].dtype == int
    assert frame["elbo_train"].tolist() == [-3.5, -2.5]
    assert history.last("step") == 20


def test_it_goes_on_from_earlier_rows_without_changing_them():
    earlier = [{"step": 10}]
    history = History(earlier)
    history.append({"step": 20})
    history.rows[0]["step"] = 0
    assert earlier == [{"step": 10}]
    assert len(history.rows) == 2
