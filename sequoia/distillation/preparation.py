"""What a run needs before it spends its budget, and a rehearsal of what comes after."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sequoia.distillation.failures import DistillError
from sequoia.distillation.order import Order
from sequoia.distillation.place import REHEARSAL
from sequoia.distillation.student import BeginningError, Shape, Student
from sequoia.distillation.target import Target
from sequoia.distillation.template import Template, TemplateError
from sequoia.prompts import PromptsError, read_prompts
from sequoia.runtime.catalogue import resolve
from sequoia.runtime.loading import load_draft
from sequoia.runtime.selfcheck import check_tree_attention
from sequoia.runtime.tokenization import end_of_text_ids

CONVERSATION_TOKENS = 256
"""Of a conversation at most, beside what the template writes."""
MIN_CONVERSATION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Ready:
    """A target that is loaded, and what is to be made of it.

    Attributes:
        target: the model, in fp32.
        folder: where its files are.
        template: what it wants to see around a user turn.
        shape: of the draft.
        beginning: the draft that it is to say the same as before it learns; None to begin as it is cut.
        head_size: token ids that the draft can say.
        always: those that must be among them.
        length: tokens of a text of the corpus at most.
        prompts: token ids of the given prompts.
        unseen: what the target reads of the prompts to judge by; None where none are given.
    """

    target: Target
    folder: Path
    template: Template
    shape: Shape
    beginning: Student | None
    head_size: int
    always: frozenset[int]
    length: int
    prompts: tuple[tuple[int, ...], ...]
    unseen: tuple[tuple[int, ...], ...] | None

    @property
    def writes(self) -> bool:
        """Whether there is anything for the target to write."""
        return bool(self.prompts) or self.template.invents


def prepare(
    order: Order, device: torch.device, say: Callable[[str], None] = lambda text: None
) -> Ready:
    """Load the target and check that the order can be carried out.

    Args:
        order: what is to be made.
        device: where to.
        say: told what else the user should know.

    Raises:
        DistillError: an option does not go with the target.
        ModelError: the target cannot be used.
        PromptsError: a prompts file cannot be used.
    """
    folder = resolve(order.target)
    target = Target.load(order.target, folder, device)
    check_tree_attention(target.model)
    tokenizer = target.tokenizer
    ends = end_of_text_ids(folder, tokenizer)
    special = ends | frozenset(tokenizer.all_special_ids)
    always = frozenset(x for x in special if x < target.model.vocabulary_size)
    template = _template(tokenizer, ends, order, say)
    length = _length(template, target)
    encoded = [_encode(tokenizer, path) for path in order.prompts]
    unseen = None
    if order.unseen is not None:
        asked = _encode(tokenizer, order.unseen)
        unseen = tuple(template.around(prompt) for prompt in asked)
    beginning = None if order.beginning is None else _beginning(order.beginning, target)
    return Ready(
        target,
        folder,
        template,
        order.shape_for(target),
        beginning,
        order.head_size_for(target, always) if beginning is None else beginning.head_size,
        always,
        length,
        tuple(prompt for some in encoded for prompt in some),
        unseen,
    )


def rehearse(ready: Ready, work: Path) -> int:
    """Cut a draft, save it and load it as a worker would, before hours are spent on it.

    Returns:
        Bytes of what a checkpoint and the draft will take on disk.

    Raises:
        DistillError: the target has no such width.
        ModelError: the draft would not load.
    """
    folder = work / REHEARSAL
    try:
        student = Student(ready.target, ready.shape, torch.arange(ready.head_size))
        if ready.beginning:
            student.begin_as(ready.beginning)
        student.save(folder)
        loaded = load_draft(folder, ready.folder, torch.float32, ready.target.model.device)
        check_tree_attention(loaded)
    except BeginningError as error:
        raise DistillError(str(error), "--from") from error
    except ValueError as error:  # layers have been checked, so it is the width
        raise DistillError(str(error), "--width" if ready.shape.width else None) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    learned = sum(tensor.numel() for tensor in student.learned().values())
    # Twice: the last checkpoint stays until the next is whole. Weights and two moments in fp32.
    return 2 * 12 * learned + 2 * 2 * learned


def _beginning(reference: str, target: Target) -> Student:
    folder = resolve(reference)
    try:
        return Student.load(folder, target)
    except (OSError, SafetensorError, KeyError) as error:
        raise DistillError(f"{folder}: no draft that was distilled ({error})", "--from") from error
    except (ValueError, RuntimeError) as error:
        raise DistillError(f"{folder}: {error}", "--from") from error


def _template(
    tokenizer: Any, ends: frozenset[int], order: Order, say: Callable[[str], None]
) -> Template:
    try:
        template = Template.of(tokenizer, ends)
    except TemplateError as error:
        template, why = Template.none(tokenizer, ends), str(error)
    else:
        why = "the target's chat template has nothing before the user's words"
    if template.invents:
        return template
    if order.prompts or order.texts:
        say(f"{why}: prompts are continued as they are, and none is invented")
        return template
    raise DistillError(
        f"{why}, so it cannot invent conversations: give prompts for it to continue with "
        "--prompts, or text for it to read with --text"
    )


def _length(template: Template, target: Target) -> int:
    fixed = len(template.opening) + len(template.middle)
    length = min(fixed + CONVERSATION_TOKENS, target.model.context_length)
    if length < fixed + MIN_CONVERSATION_TOKENS:
        raise DistillError(
            f"the target's context of {length} tokens leaves no room for a conversation: its chat "
            f"template takes {fixed}"
        )
    return length


def _encode(tokenizer: Any, path: Path) -> list[tuple[int, ...]]:
    """Token ids of the prompts of a file, those that are none left out."""
    encoded = [
        tuple(tokenizer.encode(text, add_special_tokens=False)) for text in read_prompts(path)
    ]
    found = [prompt for prompt in encoded if prompt]
    if not found:
        raise PromptsError(f"{path}: the tokenizer knows none of the prompts")
    return found
