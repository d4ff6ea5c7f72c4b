"""What a document costs against its length."""
