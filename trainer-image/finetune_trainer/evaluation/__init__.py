"""Evaluation: what the model answers, what that is worth, how sure that is, and whether it lets the model serve.

    contenders   the same question put to each contender as it would be in use
    answers      one loaded model, the examples, and every contender asked the same questions
    metrics      answers against what was expected, example by example
    evidence     how sure the test examples make a figure: intervals, bounds, paired tests
    gates        whether what was measured lets the tuned model serve, each said in words
    pairwise     two answers to one question before a judge, in both orders
    judge        a language model behind an OpenAI-compatible endpoint, asked for pairwise comparisons
    canary       answers of the tuned model with the log-probability of every token, which verify asks for again
    consistency  how often sampled answers to one question agree
    forgetting   general questions that the training is not about, asked before and after; forgetting.jsonl has ours
    headline     the metric that sums an evaluation up, and the baseline that is best by it
    scoreboard   from all of that to results.json and the status

answers -> metrics -> evidence -> gates -> scoreboard
"""
