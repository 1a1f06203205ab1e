#!/bin/sh
# Fetches the runtimes that `onnx/places.py` and `ggml/places.py` know:    fetch_places.sh PYTHON FOLDER [PART ...]
# Without PARTs all. A part that is there is left alone; one that cannot be had is named, and the others are still fetched.
# Wheels are pinned by version, npm packages by SHA-256; apt checks Debian's signatures.

python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
mkdir -p "$2/.part" || exit 1
folder=$(cd "$2" && pwd)
constraints=$(cd "$(dirname "$0")/.." && pwd)/constraints.txt
shift 2
wanted="$*"
missing=

# part NAME FUNCTION [ARGUMENTS]: run the function in an empty folder, which becomes NAME when it succeeds.
part() {
    name=$1; shift
    case " $wanted " in "  " | *" $name "*) ;; *) return ;; esac
    [ -e "$folder/$name" ] && return
    rm -rf "$folder/.part/$name"
    mkdir -p "$folder/.part/$name"
    (set -e; cd "$folder/.part/$name"; "$@")
    if [ $? -eq 0 ]; then  # not `if (...)`, in which set -e is without effect
        mv "$folder/.part/$name" "$folder/$name"
        echo "$name"
    else
        missing="$missing $name"
        rm -rf "$folder/.part/$name"
    fi
}

wheel() { "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target . "$@"; }

npm_archive() {  # NAME@VERSION=SHA256: the name of its file, once it is checked
    archive=$(npm pack --silent "${1%=*}")
    echo "${1##*=}  $archive" | sha256sum --check --quiet && echo "$archive"
}

npm_packages() {  # NAME@VERSION=SHA256 ...
    for package in "$@"; do
        archive=$(npm_archive "$package")
        name=${package%@*}
        mkdir "$name"
        tar xzf "$archive" --strip-components=1 -C "$name" --exclude='*/win32/*' --exclude='*/darwin/*'
        rm "$archive"
    done
}

llama_builds() {  # NAME=SHA256 ...: llama.cpp's libraries, as node-llama-cpp builds them
    for build in "$@"; do
        archive=$(npm_archive "@node-llama-cpp/${build%=*}@3.22.1=${build#*=}")
        tar xzf "$archive" --strip-components=2 --exclude='*.node' --exclude='libllama-common*' package/bins
        rm "$archive"
    done
}

debian() {  # PACKAGE PATTERN...: the files of a Debian package that match, without their folders
    package=$1; shift
    apt-get download -qq -o APT::Sandbox::User=root "$package"
    dpkg-deb --fsys-tarfile ./*.deb | tar x --wildcards "$@"
    find . -mindepth 2 -type f -exec mv {} . \;
    rm -rf ./*.deb ./usr
}

# unpacked ARCHITECTURE SKIPPED PACKAGE ...: packages and all that they need, from an apt that knows nothing of this
# machine's; files that match SKIPPED are left out.
unpacked() {
    architecture=$1 skipped=$2; shift 2
    mkdir -p apt/lists/partial apt/archives/partial
    : > apt/status
    apt() {
        apt-get -qq -o APT::Architecture="$architecture" -o APT::Architectures::="$architecture" \
            -o APT::Sandbox::User=root -o Dir::State="$PWD/apt" -o Dir::State::lists="$PWD/apt/lists" \
            -o Dir::State::status="$PWD/apt/status" -o Dir::Cache::archives="$PWD/apt/archives" \
            -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
    }
    apt update
    apt install --yes --no-install-recommends --download-only "$@" > /dev/null
    [ -z "$skipped" ] || find apt/archives -name "$skipped" -delete
    for package in apt/archives/*.deb; do dpkg-deb --extract "$package" .; done
    rm -r apt
}

# Mesa's Vulkan in software, with the libraries that it needs, but for those of the system's C.
lavapipe() {
    unpacked "$(dpkg --print-architecture)" 'libc6_*' mesa-vulkan-drivers libvulkan1
    driver=$(find "$PWD" -name libvulkan_lvp.so)
    found=$(find "$PWD" -name '*.so*' -exec dirname {} + | sort -u | paste -sd:)
    LD_LIBRARY_PATH=$found ldd "$driver" | awk '{print $3}' | grep "^$PWD/" | grep -v -e libstdc++ -e libgcc_s > needed
    xargs -I{} cp -L {} . < needed
    cp -L "$driver" "$(find "$PWD" -name libvulkan.so.1)" .
    sed 's#"/[^"]*/libvulkan_lvp.so"#"libvulkan_lvp.so"#' "$(find . -name 'lvp_icd*.json')" > lvp_icd.json
    find . -mindepth 1 -maxdepth 1 -type d -exec rm -r {} +
    find . -maxdepth 1 -type l -delete
    rm needed
}

# An arm64 Debian with Python.
arm64() {
    unpacked arm64 '' python3-minimal libpython3-stdlib libstdc++6
    version=$(basename usr/bin/python3.* | tr -d python.)
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target wheels --constraint "$constraints" \
        --only-binary=:all: --python-version "$version" --platform manylinux_2_28_aarch64 \
        --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
        onnxruntime numpy flatbuffers packaging protobuf
    base="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
    dot="$base atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"
    processor cortex-a72 0xd08 0x0 "$base"
    processor cortex-a76 0xd0b 0x4 "$dot"
    processor max 0xd49 0x0 "$dot i8mm bf16"  # a Neoverse N2, as far as ONNX Runtime asks
}

# processor MODEL PART VARIANT FEATURES: a root whose /proc/cpuinfo tells of it; onnxruntime reads that file.
processor() {
    mkdir -p "cpu/$1/proc"
    for top in usr lib bin; do ln -s "../../$top" "cpu/$1/$top"; done
    printf '%s\t: %s\n' processor 0 BogoMIPS 100.00 Features "$4" "CPU implementer" 0x41 "CPU architecture" 8 \
        "CPU variant" "$3" "CPU part" "$2" "CPU revision" 1 > "cpu/$1/proc/cpuinfo"
    echo >> "cpu/$1/proc/cpuinfo"
}

part onnxruntime-1.24.4 wheel onnxruntime==1.24.4
part onnxruntime-1.32.0 wheel onnxruntime==1.32.0
part onnxruntime-openvino-1.24.1 wheel onnxruntime-openvino==1.24.1
part onnxruntime-webgpu-1.27.0 wheel onnxruntime-webgpu==1.27.0
part node_modules npm_packages \
    onnxruntime-common@1.30.0=7906c439e0d3e0f4048caa23b64cdfadc0f455c377f579ce1ab2a4b778f07d5f \
    onnxruntime-web@1.30.0=d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71 \
    onnxruntime-node@1.30.0=6e3390d6b783e7be946fad629292799da28d0b42f84856e50d2c1b0383291e75
part qemu debian qemu-user-static '*/qemu-x86_64-static' '*/qemu-aarch64-static'
part swiftshader debian chromium-common '*/libvk_swiftshader.so' '*/vk_swiftshader_icd.json' '*/libvulkan.so.1'
part aarch64 arm64
part llama.cpp llama_builds \
    linux-x64=0d953e1503d5ab4608d8ed5b739132308c81ac05ffeb760d2a7f30e08a9f90e0 \
    linux-arm64=39c76b998e35ed2f236c01472fc79eda0fc558b1c8b535023c2d7ded8c327cc4 \
    linux-x64-vulkan=e10577190fc4bd1649d3b655588e5c7a85fc6b6dbf7136fee596cbe9e25521e7
part lavapipe lavapipe
rm -rf "$folder/.part"
[ -z "$missing" ] || { echo "not fetched:$missing (qemu, swiftshader, aarch64 and lavapipe need Debian)" >&2; exit 1; }
