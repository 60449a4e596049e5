"""The dual conditional GAN: generators and discriminator."""
