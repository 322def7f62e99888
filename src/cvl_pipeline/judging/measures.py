"""What each measure says, and what it cannot say."""

MEASURES = {
    "action_error": "Action error says how closely the policy repeats the logged actions of held-out episodes; it "
    "cannot say whether another action is better or worse.",
    "advantage": "Advantage says by how much, according to critics of episodes that the policy never learned from, "
    "one action of the policy is better than the logged one if the behaviour goes on afterwards; it cannot say what "
    "many such actions in a row lead to, and critics err on actions that the log lacks.",
    "fqe_value": "Fitted Q evaluation says what the policy would reach from the first states of held-out episodes; it "
    "cannot say so for actions that the log lacks, where its network guesses, and its interval does not cover that.",
    "coverage": "Coverage says whether the policy's actions, and the states that they would lead to, are as close to "
    "the log as logged ones; it cannot say whether they are good, but where it is far from 0.5, trust the other "
    "numbers less.",
}
"""One sentence per measure, for reports."""
