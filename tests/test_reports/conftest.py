"""A headless Chromium for tests of pages."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

import pytest

PROGRAMS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
CURE = 'no Chromium found, the page is NOT TESTED; the cure: apt-get install chromium'


class Browser:
    """One page in a headless Chromium, driven over the pipe of its DevTools protocol: real clicks, real keys."""

    def __init__(self, program, profile):
        # Chromium reads commands from descriptor 3 and answers on 4; high numbers keep the shell from overwriting ours.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for pipe in (os.pipe(), os.pipe()) for end in pipe]
        their_in, self._out, self._in, their_out = ends
        flags = [
            '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
            '--hide-scrollbars', '--remote-debugging-pipe', f'--user-data-dir={profile}'
        ]
        self._process = subprocess.Popen(
            ['bash', '-c', f'exec "$0" "$@" 3<&{their_in} 4>&{their_out}', program, *flags],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        os.close(their_in)
        os.close(their_out)
        self._buffer, self._number, self._session = b'', 0, None
        self.errors, self.requests = [], []

    def close(self):
        self._process.terminate()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def command(self, method, **parameters):
        """Send a command and return its result; what happens meanwhile is kept."""
        self._number += 1
        message = dict(id=self._number, method=method, params=parameters)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('method') == 'Runtime.exceptionThrown':
                self.errors.append(answer['params']['exceptionDetails'])
            elif answer.get('method') == 'Network.requestWillBeSent':
                self.requests.append(answer['params']['request']['url'])
            elif answer.get('id') == self._number:
                assert 'error' not in answer, (method, answer)
                return answer['result']

    def _receive(self, timeout=120):
        while b'\0' not in self._buffer:
            assert select.select([self._in], [], [], timeout)[0], 'Chromium does not answer'
            received = os.read(self._in, 1 << 20)
            assert received, 'Chromium has ended'
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(message)

    def open(self, file, width=1280, height=800, dark=False):
        """Open a file as a user does, at a size of the window in pixels."""
        self._session = None
        target = self.command('Target.createTarget', url='about:blank')['targetId']
        self._session = self.command('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Network'):
            self.command(f'{domain}.enable')
        self.command(
            'Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = dict(name='prefers-color-scheme', value='dark' if dark else 'light')
        self.command('Emulation.setEmulatedMedia', features=[scheme])
        self.errors, self.requests = [], []
        self.command('Page.navigate', url=file.resolve().as_uri())
        end = time.monotonic() + 60
        while self.run('document.readyState') != 'complete' or self.run('location.protocol') != 'file:':
            assert time.monotonic() < end, f'{file} does not load'

    def run(self, script):
        """The value of a line of JavaScript."""
        result = self.command('Runtime.evaluate', expression=script, returnByValue=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def click(self, selector):
        """Click into the middle of an element."""
        quoted = json.dumps(selector)
        x, y = self.run(f'''(() => {{
            const element = document.querySelector({quoted});
            element.scrollIntoView({{block: 'center', inline: 'center'}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()''')
        for kind in ('mousePressed', 'mouseReleased'):
            self.command('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

    def press(self, key, code):
        """Press a key."""
        for kind in ('rawKeyDown', 'char', 'keyUp'):
            self.command(
                'Input.dispatchKeyEvent',
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                text='\r' if key == 'Enter' and kind == 'char' else '')

    def type(self, selector, text):
        """Type into a field, over what it holds."""
        self.run(f'document.querySelector({json.dumps(selector)}).select()')
        if text:
            self.command('Input.insertText', text=text)
        else:
            self.press('Delete', 46)

    def screenshot(self, file):
        """Save what the window shows."""
        data = self.command('Page.captureScreenshot', format='png')['data']
        file.write_bytes(base64.b64decode(data))


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    """A :class:`Browser`. Without one tests are skipped, or with PELK_MM_NEEDS_BROWSER=1 they fail."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        (pytest.fail if os.environ.get('PELK_MM_NEEDS_BROWSER') else pytest.skip)(CURE)
    browser = Browser(program, tmp_path_factory.mktemp('chromium'))
    yield browser
    browser.close()
