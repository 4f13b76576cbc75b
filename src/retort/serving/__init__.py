"""A server of trained models with OpenAI's transcription endpoints: `retort serve`."""
