"""What a person looks at. Shows what is handed to it; decides nothing."""
