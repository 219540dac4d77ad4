"""Store: objects by URI, in S3 or in local files. No torch; boto3 only here.

storage   chooses the store of a URI; the interface for the other rooms
objects   the interface of every store
s3        Amazon S3 and every compatible store
refusals  what an error of a store means: a Failure's reason and words
files     local files, for runs without S3
folders   folders that readers see complete or not at all: manifest.json, written last, lists every file
weights   whether the files of a model folder are complete, and no pointers
origin    what a base model's source lists, and the download of one file
sources   from a base model's source to a local folder
basecache base models on a claim that pods share: filled once, checked by hash, bounded
locks     locks of files that several pods see
"""
