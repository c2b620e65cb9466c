# Filled in by scripts/fill_release.py: brew install ./gguf-imagegen.rb
class GgufImagegen < Formula
  include Language::Python::Virtualenv

  desc "Local image generation server for GGUF diffusion models"
  homepage "$home"
  url "$sdist_url"
  sha256 "$sdist_sha256"
  license all_of: ["MIT", "Apache-2.0"]

  depends_on "cmake" => :build
  depends_on "python@3.13"

  def install
    virtualenv_create(libexec, "python3.13")
    ENV["CMAKE_ARGS"] = "-DGGML_LLAMAFILE=ON" unless OS.mac?
    ENV["CMAKE_ARGS"] = "-DSD_METAL=ON" if OS.mac? && Hardware::CPU.arm?
    system "python3.13", "-m", "pip", "--python=#{libexec}/bin/python", "install", buildpath
    bin.install_symlink libexec/"bin/gguf-imagegen"
  end

  service do
    run [opt_bin/"gguf-imagegen", "serve"]
    keep_alive true
    log_path var/"log/gguf-imagegen.log"
    error_log_path var/"log/gguf-imagegen.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/gguf-imagegen --version")
    system bin/"gguf-imagegen", "generate", "a red apple", "-o", testpath/"apple.png"
    assert_predicate testpath/"apple.png", :exist?
  end
end
