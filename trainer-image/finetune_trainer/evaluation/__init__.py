"""Evaluation: the contenders' answers, their scores, how certain these are, and whether they let the tuned model serve.

    contenders   the same question put to each contender as it would be in use
    retrieval    the training examples that are most similar to a question
    instructions the form of the training answers in words, for Optimized's prompt
    documents    the user's documents in passages
    teacher      the base model with its prompt answers the examples before training (training.teacher)
    engines      the seam: what answers, as any contender
    in_process   our own engine, in this process
    server       a vLLM server beside it, with what will serve the adapter
    answers      one model, and every contender asked the same questions
    metrics      answers against the expected ones, example by example
    means        what few examples hide of a mean
    evidence     how certain a figure is: intervals, bounds, paired tests
    gates        whether the measured values let the tuned model serve
    missed       whether a missed gate was missed by evidence
    task_gates   the same for public benchmarks, and which of their gates make no sense
    doubt        how the doubt that a gate allows is shared among the contenders of the baseline
    power        how many examples a gate needs
    tries        how often models were evaluated on the same test examples
    feasible     gates that no answer could pass, or that a good model could miss by chance, before training
    pairwise     two answers to one question, judged in both orders
    endpoint     chat requests to a language model behind an OpenAI-compatible endpoint
    candidates   other models at such endpoints, asked the same questions
    judge        a language model behind an OpenAI-compatible endpoint, which compares answers pairwise
    canary       answers of the tuned model with the log-probability of every token, which verify requests again
    consistency  how often sampled answers to one question agree
    forgetting   general questions and instructions, asked before and after training; forgetting.jsonl has ours
    divergence   how far the tuned model has moved from the base model, on the task's prompts and on general ones
    headline     the metric that sums an evaluation up, and the baseline that is best by it
    selection    how many examples are retrieved for each question, chosen within a budget of time
    optimized    which of a few written prompts is the best, within the same budget
    reflection   a model that the job names rewrites the best of them (GEPA)
    structured   whose prompt is asked again with answers that are held to the JSON schema
    prices       what requests cost, and when that has paid for the training
    chosen       how Retrieved and Optimized are asked in the evaluation
    validation   the score of answers while the adapter trains, which decides which one is kept
    scoreboard   from all of that to results.json and the status

in_process or server -> answers -> metrics -> evidence -> gates -> scoreboard
"""
