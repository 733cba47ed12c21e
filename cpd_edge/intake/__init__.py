"""What comes in from the user: a network (`models`, `zoo`) and a task, that is data, loss and metric (`tasks`)."""
