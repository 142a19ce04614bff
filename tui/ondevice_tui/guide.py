"""What each stage does and what to watch, for the form that starts it; and what a screen is for,
for its help.
"""

from __future__ import annotations

STAGES: dict[str, str] = {
    "run": """\
A recipe is the whole road: every stage after the other in one run folder, and at the end the ladder that compares them.
Each stage begins with what the one before made.
You can stop at any time and go on later: a stop finishes the step and saves; R on the home screen goes on.
Closing this app does not stop it.
Watch: bits per byte should fall at every stage up to sft; exact match is near 0 until sft teaches answers.
The recipe minute takes about two minutes on two CPU cores, tiny about a quarter of an hour.""",
    "init": """\
Learns a tokenizer from your text and draws a model's random weights. Nothing is trained yet.
The vocabulary decides how much text a token holds: 1,024 for a toy, 8,000 and more for real text.
hidden_size and num_hidden_layers decide the size: about 12 × layers × hidden_size² parameters in the blocks.
max_position_embeddings is the longest text the model will ever read or write.
Watch: it takes seconds. The loss of a model like this is about ln(vocab_size).""",
    "pretrain": """\
Reads plain text and learns to predict the next token. This is where a model gets its language and its facts.
The loss begins near ln(vocab_size) and falls fast, then slowly. The held-out loss (o) should follow it.
Held-out loss rising while the training loss falls: the text is used up. More text, or fewer steps.
Loss jumping up, or a gradient norm that grows: lower learning_rate, or warm up longer.
steps × batch_size × sequence_length is the number of tokens read; some 20 tokens a parameter is plenty.
A step whose gradient is not finite changes nothing and shows as ✗.""",
    "classify": """\
Teaches a pre-trained model to put each text into one of some classes: rows of text and label.
It begins from the model that read plain text, with a head of one score a class in place of the one that guesses words.
Some hundred rows a class are plenty; once or twice through them is usual.
Watch: held-out accuracy against the share of the most frequent class.""",
    "sft": """\
Shows the model chats and teaches it to answer: the loss is on the assistant's tokens only.
Start from a pretrained model. A lower learning_rate than there is usual.
The stop token is learned too: a model that never stops has seen too few chats.
One to three times through the data is enough; after that the held-out loss rises and it learns by heart.
replay mixes in some plain text, so that it keeps what it knew.
Watch: held-out loss, and the answers to the fixed prompts at the end.""",
    "sample": """\
Writes several answers to each prompt with the model as it is, for a person (or a reward) to choose among.
A higher temperature makes the answers differ more: choices between equals teach nothing.
Nothing is trained. The answers then wait in the run's ratings.
Watch: how many answers were cut by the length limit, and how many differ at all.""",
    "reward": """\
Learns from your choices a model that gives an answer a number: the better one should get the higher.
It begins from the model that wrote the answers, with a head of one number in place of the vocabulary.
Accuracy is the share of held-out pairs in which it agrees with you; 50 % is chance.
Some hundred pairs are the least; ties and skipped pairs teach nothing.
Training accuracy near 100 % with held-out near 50 %: it learns pairs by heart. Fewer steps.
Watch: held-out accuracy, and that rewards do not only measure length.""",
    "dpo": """\
Learns from pairs directly, without a reward model: the chosen answer becomes likelier, the rejected one less so,
measured against the model it began as.
beta holds it near the beginning: 0.1 is usual, higher is more careful.
margin is how much more it prefers the chosen answers; accuracy, the share of pairs it orders rightly.
Both answers' probabilities falling is common; the chosen one's falling fast is not good: lower learning_rate.
Watch: held-out accuracy and margin, then read the answers.""",
    "ppo": """\
The model writes answers, the reward model marks them, and what earned more than expected becomes likelier.
kl says how far it has gone from the model it began as. A penalty (kl_coef) holds it back.
Reward rising with kl small is progress. Reward rising while answers become odd or long: the reward model is fooled.
entropy falling to 0 means it always writes the same.
clip_fraction is the share of tokens that the update wanted to change more than it may; above 0.3, lower the rate.
Watch: reward, kl, completion length, and the answers themselves.""",
    "grpo": """\
The model writes a group of answers to each problem; those better than their group's mean become likelier.
The rewards are checked by rules (is the sum right?), so nothing can be fooled but the rules.
A group that is all right or all wrong teaches nothing: zero_spread is their share. Near 100 %: the problems are too
easy or too hard.
Look at the groups: format rewarded without right answers means it learned to look right.
entropy falling to 0 means it has stopped trying. completion_length growing without accuracy is padding.
Watch: accuracy, reward with its spread, zero_spread; screen 3 shows the groups.""",
}


def about(stage: str, settings: type) -> str:
    """What a stage does; what its settings' docstring says of one that is not described here."""
    return STAGES.get(stage) or first_paragraph(settings)


def first_paragraph(settings: type) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((settings.__doc__ or "").partition("\n\n")[0].split())
