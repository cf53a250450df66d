"""What the demo computes and shows, without Gradio: pictures, networks, views."""
