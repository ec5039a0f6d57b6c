"""The reference the trainer is held to: plain PyTorch, one sequence at a time."""

import torch


def load(directory):
    """The model; where its directory has a critic's head, as `model.value_head`, among its parameters."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    if (path := directory / "heads" / "value.safetensors").is_file():
        model.value_head = torch.nn.Linear(model.config.hidden_size, 1)
        model.value_head.load_state_dict(load_file(path))
    return model


def weights(directory):
    return {name: p.detach() for name, p in load(directory).named_parameters()}


def assert_same(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def plain_logps(model, tokenizer, prompt, completion):
    """[T] one sequence alone, from the model's own logits."""
    ids = tokenizer(prompt)["input_ids"]
    target = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
    logits = model(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]


def plain_values(model, tokenizer, prompt, completion):
    """[T] what the head says of the state before each target, one sequence alone."""
    ids = tokenizer(prompt)["input_ids"]
    read = [*ids, *tokenizer(completion)["input_ids"]]
    hidden = model(torch.tensor([read]), output_hidden_states=True).hidden_states[-1]
    return model.value_head(hidden)[0, len(ids) - 1 :, 0]


def plain_steps(base, loss_of, rates=(1e-3,)):
    """The parameters after AdamW steps at these rates on `loss_of(model, tokenizer)`, and the last loss."""
    from transformers import AutoTokenizer

    model, tokenizer = load(base), AutoTokenizer.from_pretrained(base)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = loss_of(model, tokenizer)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}, loss.item()
