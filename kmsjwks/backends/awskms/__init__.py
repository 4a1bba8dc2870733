"""AWS KMS as a backend, through boto3: one account, one or several Regions."""
