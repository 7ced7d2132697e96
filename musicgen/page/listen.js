// Plays a take while it is made. Its samples come as a wav file that has no end yet: each part is
// played where the one before ends. When the take is ready, its levelled file takes over.

const HEADER = 44; // bytes before the samples
const SOON = 0.1; // seconds between scheduling a sound and hearing it
const LOUDNESS = 0.2; // RMS of music at about -14 LUFS
const MOST = 2; // the largest gain of a preview
let preview = null;

// The page has begun, or ended, a prediction that can be heard.
function listen() {
  const root = document.querySelector("#listen [data-sound]");
  if (root?.dataset.sound === preview?.root.dataset.sound) return;
  preview?.close();
  preview = root && new Preview(root);
  preview?.run();
}

class Preview {
  constructor(root) {
    this.root = root;
    this.asked = performance.now();
    this.parts = []; // Int16Array: all samples so far
    this.sources = []; // nodes of the parts that are scheduled
    this.made = 0; // seconds that have arrived
    this.gaps = 0;
    this.stopped = new AbortController();
    root.querySelector("button").onclick = () => this.toggle();
    this.clock = setInterval(() => this.draw(), 100);
  }

  async run() {
    try {
      await this.receive();
      await this.level();
    } catch (error) {
      if (!this.stopped.signal.aborted) this.say("The sound could not be played.");
    }
  }

  // Read the file and play it.
  async receive() {
    const { body } = await this.fetch(this.root.dataset.sound);
    const reader = body.getReader();
    let bytes = new Uint8Array();
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
      bytes = joined(bytes, value);
      if (!this.context && bytes.length >= HEADER) {
        const header = new DataView(bytes.buffer);
        this.channels = header.getUint16(22, true);
        this.open(header.getUint32(24, true));
        bytes = bytes.slice(HEADER);
      }
      const whole = this.context ? bytes.length - (bytes.length % (2 * this.channels)) : 0;
      if (whole) this.add(new Int16Array(bytes.slice(0, whole).buffer));
      bytes = bytes.slice(whole);
    }
    this.complete = true;
    this.play();
  }

  open(rate) {
    this.context = new AudioContext({ sampleRate: rate });
    this.volume = new GainNode(this.context);
    // Keeps a preview that was made louder within full scale.
    const limiter = new DynamicsCompressorNode(this.context, {
      threshold: -2, knee: 0, ratio: 20, attack: 0.002, release: 0.1,
    });
    this.volume.connect(limiter).connect(this.context.destination);
  }

  add(samples) {
    if (!this.parts.length && this.root.dataset.levelled) {
      const power = samples.reduce((sum, value) => sum + value * value, 0) / samples.length;
      this.volume.gain.value = Math.min(MOST, Math.max(1, (LOUDNESS * 32768) / Math.sqrt(power)));
    }
    this.parts.push(samples);
    this.made += samples.length / this.channels / this.context.sampleRate;
    this.play();
  }

  // Schedule the parts that are not scheduled yet, unless the playback would overtake the decoding.
  play() {
    const speed = this.made / ((performance.now() - this.asked) / 1000);
    const enough = this.seconds * (1 - speed);
    if (this.start === undefined && !this.complete && this.made < enough) return;
    const now = this.context.currentTime;
    if (this.start === undefined) this.start = this.next = now + SOON;
    while (this.sources.length < this.parts.length) {
      if (this.next < now) {
        this.gaps += 1;
        this.start += now + SOON - this.next;
        this.next = now + SOON;
      }
      const buffer = this.buffer(this.parts[this.sources.length]);
      const source = new AudioBufferSourceNode(this.context, { buffer });
      source.connect(this.volume);
      source.start(this.next);
      this.sources.push(source);
      this.next += buffer.duration;
    }
  }

  buffer(samples) {
    const length = samples.length / this.channels;
    const buffer = this.context.createBuffer(this.channels, length, this.context.sampleRate);
    for (let channel = 0; channel < this.channels; channel++) {
      const values = buffer.getChannelData(channel);
      for (let i = 0; i < length; i++) values[i] = samples[i * this.channels + channel] / 32768;
    }
    return buffer;
  }

  // Continue with the file of the take, from the same position.
  async level() {
    const answer = await this.fetch(this.root.dataset.take);
    if (answer.status !== 200 || !this.context) return this.close(); // cancelled, or failed
    const buffer = await this.context.decodeAudioData(await answer.arrayBuffer());
    const source = new AudioBufferSourceNode(this.context, { buffer });
    const at = this.context.currentTime + SOON;
    const position = Math.max(0, at - this.start);
    for (const part of this.sources) part.stop(at);
    if (position < buffer.duration) source.start(Math.max(at, this.start), position);
    source.connect(this.context.destination);
    this.sources = [source];
    this.levelled = true;
    this.say("");
    source.onended = () => this.close();
    if (position >= buffer.duration) this.close();
  }

  // A browser plays nothing before the visitor has clicked somewhere.
  get playing() {
    return this.context?.state === "running";
  }

  get seconds() {
    return Number(this.root.dataset.seconds);
  }

  get position() {
    if (this.start === undefined) return 0;
    return Math.min(this.made, Math.max(0, this.context.currentTime - this.start));
  }

  toggle() {
    if (!this.context) return;
    if (this.playing) this.context.suspend();
    else this.context.resume();
  }

  draw() {
    const share = (value) => `${(100 * value) / this.seconds}%`;
    const button = this.root.querySelector("button");
    button.textContent = this.playing ? "❚❚" : "▶";
    button.setAttribute("aria-label", this.playing ? "Pause" : "Play");
    this.root.hidden = !this.parts.length;
    this.root.querySelector(".made").style.width = share(this.made);
    this.root.querySelector(".played").style.width = share(this.position);
    this.root.querySelector("output").textContent = `${this.position.toFixed(1)} s`;
  }

  say(text) {
    this.root.querySelector(".says").textContent = text;
  }

  fetch(address) {
    return fetch(address, { signal: this.stopped.signal });
  }

  close() {
    this.stopped.abort();
    clearInterval(this.clock);
    if (this.context?.state !== "closed") this.context?.close();
    this.root.hidden = true;
  }
}

function joined(a, b) {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
