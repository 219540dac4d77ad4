"""Store: objects by URI, whatever holds them. No torch; boto3 only here.

storage  chooses the store of a URI; the one door of the other rooms
objects  what every store of objects provides
s3       Amazon S3 and every compatible store
files    local files, for runs without S3
folders  folders that a reader never sees half: manifest.json, written last, lists every file
sources  from a base model's source to a local folder
"""
