"""CRDs and reference pages, made of the models and the command line: `python hack/generate [--check]`.

- `crd`: the CustomResourceDefinitions, in crds/ and in the chart.
- `api`: docs/reference of the contract; `tables` has the tables of schemas.
- `cli`: docs/reference of the command `finetune`.
- `page`: a page is a Markdown template of templates/ with its parts filled in.
"""
